import { resolve } from "node:path";
import {
  addEngine,
  createKeyDirectory,
  defaultKeyDirectory,
  engineKeyVariables,
  type KeyDirectory,
  readEngineKeys,
  readKeyDirectory,
  revokeEngine,
} from "@triattn/control";
import { Command } from "commander";
import { quote } from "../serve/output.ts";
import { columns } from "../text.ts";
import { withHelp } from "./help.ts";

interface Flags {
  dir?: string;
  engine: string;
  json?: boolean;
}

const print = (text: string): void => void process.stdout.write(`${text}\n`);
const directoryOf = ({ dir }: Pick<Flags, "dir">): string => resolve(dir ?? defaultKeyDirectory());

/** What may be shown: names and public keys. */
const shown = ({ directory, server, allowed }: KeyDirectory) => ({
  directory,
  serverPublicKey: server.publicKey,
  engines: allowed,
});

function create(flags: Flags): string {
  const made = createKeyDirectory(directoryOf(flags), flags.engine);
  if (flags.json) return JSON.stringify(shown(made));
  const at = quote(made.directory);
  return `keys of the control plane and of engine ${flags.engine}: ${made.directory}

The control plane, with an engine of its own:
  triattn serve MODEL --listen tcp://0.0.0.0:9471 --keys ${at}
or from Node:
  createControlPlane({ endpoint: "tcp://0.0.0.0:9471", curve: readCurve("${made.directory}") })

An engine elsewhere, beside TRIATTN_SOCKET=tcp://HOST:9471, gets what this prints (its secret key is in it):
  triattn keys env ${flags.engine} --dir ${at}

Another engine: triattn keys add NAME --dir ${at}`;
}

function add(name: string, flags: Flags): string {
  const engine = addEngine(directoryOf(flags), name);
  if (flags.json) return JSON.stringify(engine);
  return `engine ${name} may connect, once the control plane is started again; its key is ${engine.publicKey}`;
}

function list(flags: Flags): string {
  const found = readKeyDirectory(directoryOf(flags));
  if (flags.json) return JSON.stringify(shown(found));
  const rows = found.allowed.map(({ name, publicKey }) => [name, publicKey]);
  return columns([["NAME", "PUBLIC KEY"], ["(control plane)", found.server.publicKey], ...rows]);
}

function env(name: string, flags: Flags): string {
  const directory = directoryOf(flags);
  const variables = engineKeyVariables(readKeyDirectory(directory).server, readEngineKeys(directory, name));
  if (flags.json) return JSON.stringify(variables);
  return Object.entries(variables)
    .map(([variable, value]) => `export ${variable}=${quote(value)}`)
    .join("\n");
}

function revoke(name: string, flags: Flags): string {
  revokeEngine(directoryOf(flags), name);
  if (flags.json) return JSON.stringify({ name });
  return `engine ${name} is kept out, once the control plane is started again`;
}

/** `triattn keys`: who may connect over TCP. */
export function keysCommand(): Command {
  const sub = (name: string, description: string, example: string): Command =>
    withHelp(
      new Command(name)
        .description(description)
        .option("--dir <directory>", "where the keys lie (default: triattn/keys in the user's configuration)")
        .option("--json", "print one line of JSON"),
      { codes: [[2, "keys are there already, are missing, or others can read them"]], examples: [example] },
    );
  const named = ["<name>", "the engine's name: small letters, digits, dots, dashes, underscores"] as const;
  const commands = [
    sub(
      "create",
      "Make the key of the control plane and that of one engine; nothing is overwritten.",
      "triattn keys create",
    )
      .option("--engine <name>", "name of the engine", "engine")
      .action((flags: Flags) => print(create(flags))),
    sub("add", "Make the key of another engine and let it in.", "triattn keys add gpu-2")
      .argument(...named)
      .action((name: string, flags: Flags) => print(add(name, flags))),
    sub("list", "Show who may connect, by public keys.", "triattn keys list --json").action((flags: Flags) =>
      print(list(flags)),
    ),
    sub(
      "env",
      "Print the variables that an engine needs, its secret key among them.",
      "triattn keys env gpu-2 > gpu-2.env",
    )
      .argument(...named)
      .action((name: string, flags: Flags) => print(env(name, flags))),
    sub("revoke", "Keep an engine out from now on, and delete its key.", "triattn keys revoke gpu-2")
      .argument(...named)
      .action((name: string, flags: Flags) => print(revoke(name, flags))),
  ];
  const command = new Command("keys").description(
    "CURVE keys: without them the control plane never listens on TCP, and only engines on its list may connect.",
  );
  for (const one of commands) command.addCommand(one);
  return withHelp(command, { codes: [2], examples: ["triattn keys create", "triattn keys add gpu-2"] });
}
