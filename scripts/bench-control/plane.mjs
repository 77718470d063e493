/** The control plane in a process of its own, from the built package: `plane.mjs PACKAGE`; it says where it listens. */
const [directory = ""] = process.argv.slice(2);
const { createControlPlane } = await import(`${directory}/dist/index.js`);
const plane = await createControlPlane({ policy: "random", http: { port: 0 } });
process.stdout.write(`${JSON.stringify({ endpoint: plane.endpoint, url: plane.url })}\n`);
process.on("SIGTERM", () => void plane.close());
