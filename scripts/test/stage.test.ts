import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { readJunit, readVitest, runStage } from "./stage.ts";

const directory = mkdtempSync(join(tmpdir(), "triattn-stage-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

test("counts of a JUnit report", () => {
  const suite =
    '<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10" time="1">';
  expect(readJunit(suite)).toEqual({ passed: 4, failed: 3, skipped: 3 });
});

test("counts of vitest's report, with a file that could not be loaded", () => {
  const report = {
    numPassedTests: 5,
    numFailedTests: 1,
    numPendingTests: 2,
    numTodoTests: 1,
    testResults: [
      { status: "failed", assertionResults: [{}] },
      { status: "failed", assertionResults: [] },
    ],
  };
  expect(readVitest(JSON.stringify(report))).toEqual({ passed: 5, failed: 2, skipped: 3 });
});

test("a stage without a report counts as one; one that cannot start, dies or finds nothing has failed", async () => {
  const stage = { name: "s", command: "true", args: [] };
  const of = async (more: object) => {
    const { passed, failed } = await runStage({ ...stage, ...more });
    return [passed, failed];
  };
  expect(await of({})).toEqual([1, 0]);
  expect(await of({ command: "false" })).toEqual([0, 1]);
  expect(await of({ command: "/nowhere" })).toEqual([0, 1]);
  const file = join(directory, "report.xml");
  const report = { kind: "junit", file };
  expect(await of({ report })).toEqual([0, 1]);
  writeFileSync(file, '<testsuite tests="0" failures="0" errors="0" skipped="0">');
  expect(await of({ report })).toEqual([0, 1]);
  writeFileSync(file, '<testsuite tests="3" failures="0" errors="0" skipped="1">');
  expect(await of({ report })).toEqual([2, 0]);
  // A runner that crashed after its report has failed all the same.
  expect(await of({ report, command: "false" })).toEqual([2, 1]);
});

test("its last lines are kept", async () => {
  const stage = { name: "s", command: "bash", args: ["-c", "seq 130; echo end >&2; exit 1"] };
  const { end } = await runStage(stage);
  expect(end.split("\n")).toHaveLength(120);
  expect(end).toContain("130");
  expect(end).toContain("end");
});

test("a stage that hangs is killed, with what it started, and has failed", async () => {
  const pid = join(directory, "pid");
  const script = `sleep 600 & echo $! > ${pid}; wait`;
  const stage = { name: "hangs", command: "bash", args: ["-c", script], minutes: 0.01 };
  expect(await runStage(stage)).toMatchObject({ passed: 0, failed: 1 });
  const stat = () => readFileSync(`/proc/${readFileSync(pid, "utf8").trim()}/stat`, "utf8");
  await expect
    .poll(() => existsSync(`/proc/${readFileSync(pid, "utf8").trim()}`) && !/\) Z /.test(stat()))
    .toBe(false);
});
