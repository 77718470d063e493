import "./styles/fonts.css";
import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/controls.css";
import "./styles/views.css";
import "./styles/policy.css";
import "uplot/dist/uPlot.min.css";
import { render } from "preact";
import { takeTokenFromAddress } from "./api/token.ts";
import { start } from "./state/page.ts";
import { App } from "./ui/app.tsx";

takeTokenFromAddress();
start();
const root = document.getElementById("app");
if (root !== null) render(<App />, root);
