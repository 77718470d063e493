/**
 * The reference of the Node API, docs/api.md, from the docstrings of what the package `triattn` exports:
 * `npx -y pnpm@12 docs:api` writes it. The compiler's own API is TypeScript 5's, which the workspace keeps beside 7.
 */
import { writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import * as protocol from "@triattn/protocol";
import ts from "typescript-classic";
import { z } from "zod";
import { root } from "../setup/paths.ts";

export const path = join(root, "docs", "api.md");
const entry = join(root, "packages", "cli", "src", "index.ts");
const WIDEST = 110;

/** Chapters, by where a thing is declared. */
const chapters: readonly (readonly [title: string, file: RegExp])[] = [
  ["Serving a model", /cli\/src\/(serve|errors|package|version)/],
  ["Control plane", /control\/src\/(control-plane|types|watches|curve|http\/)/],
  ["Tasks with exact traces", /cli\/src\/eval\//],
  ["Policies, rules and requests", /control\/src\/(builders|policy|rules|request-options|reference)/],
  ["Documents and messages", /protocol\/src\/(?!http)/],
  ["HTTP API", /protocol\/src\/http/],
  ["Statistics", /control\/src\/stats\//],
  ["Errors and the rest", /./],
];

const program = ts.createProgram([entry], {
  target: ts.ScriptTarget.ES2023,
  lib: ["lib.es2024.d.ts", "lib.esnext.disposable.d.ts"],
  module: ts.ModuleKind.NodeNext,
  strict: true,
  exactOptionalPropertyTypes: true,
  noUncheckedIndexedAccess: true,
  allowImportingTsExtensions: true,
  noEmit: true,
  skipLibCheck: true,
  types: ["node"],
});
const checker = program.getTypeChecker();

function docs(symbol: ts.Symbol): string {
  return ts.displayPartsToString(symbol.getDocumentationComment(checker)).trim();
}

const TEXT = ts.TypeFormatFlags.NoTruncation | ts.TypeFormatFlags.UseAliasDefinedOutsideCurrentScope;

function typeText(type: ts.Type, at: ts.Node): string {
  return checker.typeToString(type, at, TEXT).replaceAll(/import\("[^"]+"\)\./g, "");
}

/** A declaration without its comments, its body, `export` and what is private. */
function sourceOf(declaration: ts.Node): string {
  const printer = ts.createPrinter({ removeComments: true });
  const text = printer.printNode(ts.EmitHint.Unspecified, declaration, declaration.getSourceFile());
  return text
    .replace(/^export (declare )?/, "")
    .replaceAll(/^( {4})+/gm, (indent) => "  ".repeat(indent.length / 4));
}

function signatures(symbol: ts.Symbol, name: string, at: ts.Node): string[] {
  const type = checker.getTypeOfSymbolAtLocation(symbol, at);
  return type.getCallSignatures().map((signature) => {
    const text = checker.signatureToString(signature, at, TEXT).replaceAll(/import\("[^"]+"\)\./g, "");
    return `${name}${text}`;
  });
}

/** Documents each member of an interface or class that has something to say. */
function members(symbol: ts.Symbol, at: ts.Declaration): string[] {
  const isHidden = (member: ts.Symbol) =>
    member.name.startsWith("#") ||
    member.name.startsWith("__") ||
    (member.declarations ?? []).some((d) => ts.getCombinedModifierFlags(d) & ts.ModifierFlags.Private);
  const own = [...(symbol.members?.values() ?? [])].filter((member) => !isHidden(member));
  return own.flatMap((member) => {
    const text = docs(member);
    const optional = member.flags & ts.SymbolFlags.Optional ? "?" : "";
    const declaration: ts.Declaration = member.valueDeclaration ?? at;
    const shown =
      member.flags & ts.SymbolFlags.Method
        ? ts.isMethodSignature(declaration)
          ? (member.declarations ?? []).map((d) => d.getText().replace(/;$/, "").replaceAll(/\s+/g, " "))
          : signatures(member, member.name, declaration)
        : [`${member.name}${optional}: ${declaredType(member, declaration)}`];
    return [`- \`${shown.join("`, `")}\`${text === "" ? "" : `  \n  ${text.replaceAll("\n", "\n  ")}`}`];
  });
}

/** As it is written, where it is: shorter than what the compiler makes of it. */
function declaredType(member: ts.Symbol, declaration: ts.Declaration): string {
  const written =
    ts.isPropertySignature(declaration) || ts.isPropertyDeclaration(declaration)
      ? declaration.type
      : undefined;
  const text =
    written?.getText() ?? typeText(checker.getTypeOfSymbolAtLocation(member, declaration), declaration);
  return text.replaceAll(/\/\*\*[\s\S]*?\*\//g, "").replaceAll(/\s+/g, " ");
}

/** What a schema says of itself and of its fields. */
function schemaDocs(name: string): string[] {
  const schema: unknown = Reflect.get(protocol, name);
  if (!(schema instanceof z.ZodType)) return [];
  const about = schema.description === undefined ? [] : ["", schema.description];
  const shape = schema instanceof z.ZodObject ? Object.entries<z.ZodType>(schema.shape) : [];
  const fields = shape.filter(([, field]) => field.description !== undefined);
  const list = fields.map(([field, { description }]) => `- \`${field}\`: ${description}`);
  return [...about, ...(list.length === 0 ? [] : ["", ...list])];
}

function entryOf(name: string, symbol: ts.Symbol): string {
  const declarations = symbol.declarations ?? [];
  // A schema and its type have one name: the type is what a reader needs.
  const declaration = declarations.find(ts.isTypeAliasDeclaration) ?? declarations[0];
  if (declaration === undefined) throw new Error(`${name} is declared nowhere`);
  const lines = [`### ${name}`, ""];
  if (symbol.flags & ts.SymbolFlags.Function) {
    lines.push("```ts", ...signatures(symbol, `function ${name}`, declaration), "```");
  } else if (ts.isClassDeclaration(declaration)) {
    const base = declaration.heritageClauses?.map((clause) => clause.getText()).join(" ") ?? "";
    lines.push("```ts", `class ${name} ${base}`.trim(), "```");
  } else if (ts.isInterfaceDeclaration(declaration)) {
    const base = declaration.heritageClauses?.map((clause) => clause.getText()).join(" ") ?? "";
    const parameters = declaration.typeParameters?.map((p) => p.getText()).join(", ");
    lines.push("```ts", `interface ${name}${parameters ? `<${parameters}>` : ""} ${base}`.trim(), "```");
  } else if (ts.isTypeAliasDeclaration(declaration)) {
    const written = sourceOf(declaration);
    const inferred = `type ${name} = ${typeText(checker.getDeclaredTypeOfSymbol(symbol), declaration)};`;
    // A schema's type says nothing until it is worked out.
    lines.push("```ts", ...(/z\.infer|z\.input/.test(written) ? wrap(inferred) : [written]), "```");
  } else {
    const type = typeText(checker.getTypeOfSymbolAtLocation(symbol, declaration), declaration);
    lines.push("```ts", `const ${name}: ${type}`, "```");
  }
  const text = docs(symbol);
  if (text !== "") lines.push("", text);
  lines.push(...schemaDocs(name));
  const isObject = ts.isClassDeclaration(declaration) || ts.isInterfaceDeclaration(declaration);
  const list = isObject ? members(symbol, declaration) : [];
  if (list.length > 0) lines.push("", ...list);
  return lines.join("\n");
}

/** One line a property, where one line does not hold all. */
function wrap(text: string): string[] {
  if (text.length <= WIDEST) return [text];
  return text
    .replaceAll("{ ", "{\n")
    .replaceAll("; }", ";\n}")
    .replaceAll("; ", ";\n")
    .split("\n")
    .map(indented());
}

function indented(): (line: string) => string {
  let depth = 0;
  return (line) => {
    if (line.startsWith("}")) depth -= 1;
    const shown = "  ".repeat(Math.max(0, depth)) + line;
    if (line.endsWith("{")) depth += 1;
    return shown;
  };
}

/** The page. */
export function reference(): string {
  const source = program.getSourceFile(entry);
  const module = source && checker.getSymbolAtLocation(source);
  if (module === undefined) throw new Error(`${entry} exports nothing`);
  const found = checker.getExportsOfModule(module).map((exported) => {
    const symbol = exported.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(exported) : exported;
    const file = relative(root, symbol.declarations?.[0]?.getSourceFile().fileName ?? "");
    return { name: exported.name, symbol, chapter: chapters.findIndex(([, pattern]) => pattern.test(file)) };
  });
  const lines = [
    "# Node API",
    "",
    'What `import … from "triattn"` gives, from the docstrings of the source. [Examples](../examples) run as they are.',
  ];
  for (const [index, [title]] of chapters.entries()) {
    const inside = found
      .filter(({ chapter }) => chapter === index)
      .sort((a, b) => (a.name < b.name ? -1 : 1));
    if (inside.length === 0) continue;
    lines.push("", `## ${title}`);
    for (const { name, symbol } of inside) lines.push("", entryOf(name, symbol));
  }
  return `${lines.join("\n")}\n`;
}

if (import.meta.main ?? process.argv[1] === import.meta.filename) writeFileSync(path, reference());
