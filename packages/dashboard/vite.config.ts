import { presets } from "@triattn/protocol";
import { defineConfig } from "vite";

export default defineConfig({
  root: import.meta.dirname,
  // The page works under any path.
  base: "./",
  logLevel: "warn",
  // Their names only: the rest comes from the control plane.
  define: { PRESET_NAMES: JSON.stringify(Object.keys(presets)) },
  build: {
    outDir: "dist/page",
    emptyOutDir: true,
    target: "es2023",
    // No inline script or style, and no data: font: the page's Content-Security-Policy allows none.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    rolldownOptions: { checks: { pluginTimings: false } },
  },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
});
