"""Kills, failing stores, full disks and bad files against the real commands: what was lost, and what was said.

    python benchmarks/attack.py --out attack --seed 0

Each case is made from the seed and its number, and its outcome is a line of ``OUT/outcomes.jsonl``: the same command
goes on where it was stopped. ``--case KIND:NUMBER`` does one again and keeps its folder. What is asked of a case:

- kills: SIGKILL at one to three random moments, of the command with its workers or of it alone; the same command then
  ends, and has made what an undisturbed one makes, to the last bit.
- stores: an object store (rclone) behind a proxy that breaks or tampers with answers; the command ends as
  an undisturbed one, or with one message; without the proxy's faults the same command ends equal.
- disks: a file system of random size (needs root, for tmpfs); one message, and with more space the same command
  ends equal.
- inputs: files changed by chance; what has a digest gives equal answers or is refused, and nothing gives a traceback,
  takes minutes, or gigabytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

NOTHING: Mapping[str, str] = MappingProxyType({})
COUNTS = {"kills": 80, "stores": 160, "disks": 60, "inputs": 500}
CASES_OF_WORKS = ("train", "build-shards", "build-masks", "index", "predict", "evaluate", "export", "robustness")
STORE_CASES = ("train", "read", "cache", "build-shards", "build-masks")


@dataclass(frozen=True)
class Input:
    """Files that are changed by chance, and the commands of which one then reads them."""

    what: str
    pattern: str
    """Empty: it is a setting on the command line that is odd."""
    has_digest: bool
    """So it must give equal answers or be refused."""
    commands: tuple[str, ...]


def read_inputs() -> list[Input]:
    """The lines of the table; those that follow one another on the same files are one input."""
    short: dict[str, str] = {}
    found: list[Input] = []
    for line in Path(__file__).with_name("attack_inputs.txt").read_text().splitlines():
        if "|" not in line:
            name, _, words = line.partition(" = ")
            short[name] = words
        elif not line.startswith("#"):
            what, pattern, words = line.split(" | ")
            first, _, rest = words.partition(" ")
            words = f"{short.get(first, first)} {rest}".strip()
            before = (
                found[-1]
                if found and (found[-1].what, found[-1].pattern) == (what.strip("@"), pattern.strip("-"))
                else None
            )
            if before:
                found[-1] = dataclasses.replace(before, commands=(*before.commands, words))
            else:
                found.append(Input(what.strip("@"), pattern.strip("-"), what.startswith("@"), (words,)))
    return found


class Attack:
    """Does the cases that are not done yet; a context manager."""

    def __init__(self, out: Path, seed: int, keep: bool = False):
        self.out, self.seed, self.keep = out.resolve(), seed, keep
        self.outcomes = self.out / "outcomes.jsonl"
        self.undisturbed: dict[str, tuple[dict, float]] = {}
        self.open = ExitStack()

    def __enter__(self) -> Attack:
        from benchmarks.attacked import Program, make_ground
        from tests import s3server

        self.out.mkdir(parents=True, exist_ok=True)
        self.program = self.open.enter_context(Program())
        self.ground = make_ground(self.out / "ground", self.program)
        (self.out / "s3/bucket").mkdir(parents=True, exist_ok=True)
        self.s3 = self.open.enter_context(s3server.running(self.out / "s3"))
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def done(self) -> list[dict]:
        if not self.outcomes.exists():
            return []
        return [row for row in map(json.loads, self.outcomes.read_text().splitlines()) if row["seed"] == self.seed]

    def do(self, kind: str, number: int) -> dict:
        """One case: its row."""
        folder = self.out / f"{kind}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        chance = random.Random(f"{self.seed} {kind} {number}")
        row = {"seed": self.seed, "kind": kind, "number": number, "peak": 0.0, "commands": 0, "faults": [], "lost": ""}
        try:
            getattr(self, kind)(folder, chance, number, row)
        finally:
            self.s3.proxy.choose = lambda method, path: None
            if not self.keep:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(self.out / "s3/bucket" / folder.name, ignore_errors=True)
        return row

    def command(self, row: dict, words: str, folder: Path, environment: Mapping[str, str] = NOTHING, **options):
        outcome = self.program.run(words.split(), folder, environment, **options)
        row["commands"] += 1
        row["cpu"] = round(row.get("cpu", 0) + outcome.cpu, 2)
        row["peak"] = max(row["peak"], outcome.megabytes)
        if outcome.fault:
            row["faults"].append(f"{outcome.fault} | {words} | {outcome.said[-1500:]}")
        return outcome

    def work(self, name: str, out: str, again: bool = False) -> str:
        from benchmarks.attacked import WORKS

        work = WORKS[name]
        words = work.words.replace("GROUND", str(self.ground)).replace("OUT", out)
        return " ".join([words, *(work.after if again else ())])

    def expected(self, name: str) -> tuple[dict, float]:
        """What the work makes undisturbed, and in how many seconds."""
        from benchmarks.attacked import WORKS

        if name not in self.undisturbed:
            folder = self.out / f"undisturbed-{name}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            outcome = self.program.run(self.work(name, "out").split(), folder, NOTHING)
            if outcome.code:
                raise SystemExit(f"{self.work(name, 'out')}\n{outcome.said}")
            self.undisturbed[name] = WORKS[name].made(folder / "out"), outcome.seconds
        return self.undisturbed[name]

    def finish(
        self, row: dict, name: str, folder: Path, out: str, place: Path, environment: Mapping[str, str] = NOTHING
    ) -> None:
        """The same command, undisturbed now, ends and has made what it makes."""
        outcome = self.command(row, self.work(name, out, again=True), folder, environment)
        if outcome.code:
            row["lost"] = f"does not go on: {outcome.said[-600:]}"
            return
        self.compare_made(row, name, place)

    def compare_made(self, row: dict, name: str, place: Path) -> None:
        from benchmarks.attacked import WORKS

        expected = self.expected(name)[0]
        try:
            found = WORKS[name].made(place)
        except (OSError, ValueError) as error:  # the command said that it was done
            row["lost"] = f"not what it makes: {error}"
        else:
            self.compare(row, found, expected)

    def compare(self, row: dict, found: dict, expected: dict) -> None:
        names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        if names:
            row["lost"] = f"differs: {', '.join(names)[:300]}"

    def kills(self, folder: Path, chance: random.Random, number: int, row: dict) -> None:
        name = CASES_OF_WORKS[number % len(CASES_OF_WORKS)]
        _, seconds = self.expected(name)
        moments = []
        for turn in range(chance.choice((1, 1, 2, 3))):
            moments.append(chance.uniform(0, 1.1 * seconds))
            alone = chance.random() < 0.5
            outcome = self.command(row, self.work(name, "out", turn > 0), folder, kill_after=moments[-1], alone=alone)
            if outcome.code == 2:
                row["lost"] = f"does not go on: {outcome.said[-600:]}"
                return
        row["what"] = f"{name} after {', '.join(f'{moment:.2f}' for moment in moments)} s"
        self.finish(row, name, folder, "out", folder / "out")

    def stores(self, folder: Path, chance: random.Random, number: int, row: dict) -> None:
        from tests.faultproxy import ANSWERS, FAULTS, TAMPERED, Sometimes

        name = STORE_CASES[number % len(STORE_CASES)]
        fault = chance.choice((*FAULTS, *ANSWERS, *TAMPERED, *TAMPERED))
        method = chance.choice((None, None, "GET", "PUT", "HEAD", "DELETE", "POST"))
        if name in ("read", "cache"):
            method = chance.choice((None, "GET"))
        times = chance.choice((1, 1, 2, 5, None))
        row["what"] = f"{name}: {fault} of {method or 'any'}, {times or 'all'} times"
        environment = {**self.s3.environment, "TMPDIR": str(folder)}
        bucket = self.out / "s3/bucket" / folder.name
        shutil.rmtree(bucket, ignore_errors=True)
        choose = Sometimes(fault, times, method=method, after=chance.choice((0, 0, 1, 3, 8, 20)))
        if name in ("read", "cache"):
            shutil.copytree(self.ground / "data", bucket / "data")
            words = f"evaluate --checkpoint {self.ground}/run --data s3://bucket/{folder.name}/data"
            words += " --device cpu --out out.parquet"
            words += " --cache cache" if name == "cache" else ""
            if "evaluate s3" not in self.undisturbed:
                self.command(row, words, folder, environment)
                self.undisturbed["evaluate s3"] = self.rows_of(folder / "out.parquet"), 0.0
                (folder / "out.parquet").unlink()
                shutil.rmtree(folder / "cache", ignore_errors=True)
            self.s3.proxy.choose = choose
            disturbed = self.command(row, words, folder, environment)
            self.s3.proxy.choose = lambda method, path: None
            for outcome in (disturbed, self.command(row, words, folder, environment)):
                if outcome.code and outcome is not disturbed:
                    row["lost"] = f"does not go on: {outcome.said[-600:]}"
                elif not outcome.code:
                    self.compare(row, self.rows_of(folder / "out.parquet"), self.undisturbed["evaluate s3"][0])
            row["ended"] = disturbed.code
            return
        url = f"s3://bucket/{folder.name}/out"
        self.expected(name)
        self.s3.proxy.choose = choose
        disturbed = self.command(row, self.work(name, url), folder, environment)
        self.s3.proxy.choose = lambda method, path: None
        row["ended"] = disturbed.code
        if disturbed.code == 0:
            self.compare_made(row, name, bucket / "out")
        if not row["lost"]:
            self.finish(row, name, folder, url, bucket / "out", environment)

    def rows_of(self, file: Path) -> dict:
        """What a predictions file says, without where the shards were."""
        import pyarrow.parquet as pq

        return dict(enumerate(pq.read_table(file).to_pylist()))

    def disks(self, folder: Path, chance: random.Random, number: int, row: dict) -> None:
        if os.geteuid():
            row["what"] = "left out: needs root"
            return
        name = CASES_OF_WORKS[number % len(CASES_OF_WORKS)]
        self.expected(name)
        used = sum(file.stat().st_size for file in (self.out / f"undisturbed-{name}").rglob("*") if file.is_file())
        size = int(chance.uniform(0.02, 1.3) * used) // 4096 * 4096 + 4096
        row["what"] = f"{name} with {size} of {used} bytes"
        disk = folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "attack", str(disk)], check=True)
        try:
            outcome = self.command(row, self.work(name, "disk/out"), folder, {"TMPDIR": str(disk)})
            row["ended"] = outcome.code
            subprocess.run(["mount", "-o", "remount,size=2g", str(disk)], check=True)
            self.finish(row, name, folder, "disk/out", disk / "out")
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    def inputs(self, folder: Path, chance: random.Random, number: int, row: dict) -> None:
        from benchmarks.mutations import ODD_NUMBERS, ODD_TEXTS, mutate

        inputs = read_inputs()
        one = inputs[number % len(inputs)]
        what, words = one.what, chance.choice(one.commands)
        self.copy_ground(folder, one.pattern)
        if what == "part":
            self.command(row, words, folder, kill_after=0.7 * self.usual(words), alone=False)
            if not (folder / "x.csv.part0").exists():
                row["what"] = "part: none yet"
                return
        if what == "photographs":
            names = [path.name for path in sorted((folder / "odd").iterdir())]
            (folder / "pictures.csv").write_text("image,labels\n" + "".join(f"odd/{name},cat\n" for name in names))
        if not one.pattern:
            fields = settings()
            value = chance.choice(
                (*ODD_NUMBERS, *(text for text in ODD_TEXTS if text and not set(text) & set("\0 \n")))
            )
            setting = f"{chance.choice(fields)}={value}"
            row["what"] = f"settings: {setting[:80]}"
            words += f" --set {setting}"
        else:
            files = sorted(folder.glob(one.pattern))
            file = chance.choice(files)
            how = mutate(file, chance, [other for other in files if other != file])
            row["what"] = f"{what}: {file.name} {how}"
        outcome = self.command(row, words, folder)
        row["ended"] = outcome.code
        if one.has_digest and outcome.code == 0 and (found := self.answers(folder)) is not None:
            self.compare(row, found, self.usual_answers(words))

    def copy_ground(self, folder: Path, pattern: str) -> None:
        """The ground, of which only what is changed and what commands write to is a copy."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        changed = {"run", "robustness", pattern.split("/")[0]}
        for source in self.ground.iterdir():
            if source.name not in changed and source.name != "said.txt":
                (folder / source.name).symlink_to(source)
            elif source.is_dir():
                shutil.copytree(source, folder / source.name)
            elif source.name != "said.txt":
                shutil.copyfile(source, folder / source.name)

    def answers(self, folder: Path) -> dict | None:
        """Of an evaluation or prediction, what it says; of a training, what it learnt."""
        from benchmarks.attacked import run_made

        if (folder / "new/checkpoints").exists():
            return run_made(folder / "new")
        if (folder / "x.parquet").exists():
            return self.rows_of(folder / "x.parquet")
        return {"csv": (folder / "x.csv").read_text()} if (folder / "x.csv").exists() else None

    def usual(self, words: str) -> float:
        self.usual_answers(words)
        return self.undisturbed[words][1]

    def usual_answers(self, words: str) -> dict:
        if words not in self.undisturbed:
            folder = self.out / "undisturbed-input"
            self.copy_ground(folder, "")
            outcome = self.program.run(words.split(), folder, NOTHING)
            self.undisturbed[words] = self.answers(folder) or {}, outcome.seconds
        return self.undisturbed[words][0]


def settings() -> list[str]:
    """Every ``section.field`` of a training's configuration."""
    from msltrain.recipes import recipe

    config = recipe("smoke")
    sections = [section.name for section in dataclasses.fields(config)]
    return [f"{name}.{field.name}" for name in sections for field in dataclasses.fields(getattr(config, name))]


def table(rows: list[dict]) -> str:
    """One line a kind: what was done, and what came of it."""
    lines = [
        "| attack | cases | commands | ended as undisturbed | one message | lost | tracebacks, hangs | most memory |"
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in COUNTS:
        ours = [row for row in rows if row["kind"] == kind]
        if ours:
            refused = sum(bool(row.get("ended")) for row in ours)
            counted = len(ours), sum(row["commands"] for row in ours), len(ours) - refused, refused
            bad = sum(bool(row["lost"]) for row in ours), sum(bool(row["faults"]) for row in ours)
            lines.append(
                f"| {kind} | {' | '.join(map(str, (*counted, *bad)))} | {max(row['peak'] for row in ours):,.0f} MB |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("attack"))
    parser.add_argument("--seed", type=int, default=0)
    for kind, count in COUNTS.items():
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N")
    parser.add_argument("--case", metavar="KIND:NUMBER", help="do this one again, and keep its folder")
    arguments = parser.parse_args()
    with Attack(arguments.out, arguments.seed, keep=arguments.case is not None) as attack:
        if arguments.case:
            kind, _, number = arguments.case.partition(":")
            print(json.dumps(attack.do(kind, int(number)), indent=1).replace("\\n", "\n"))
            return
        done = {(row["kind"], row["number"]) for row in attack.done()}
        counts = {kind: getattr(arguments, kind) for kind in COUNTS}
        # By turns, so that a part of the attack is a smaller attack.
        wanted = sorted(
            ((kind, n) for kind in COUNTS for n in range(counts[kind])), key=lambda one: one[1] / counts[one[0]]
        )
        for kind, number in wanted:
            if (kind, number) not in done:
                row = attack.do(kind, number)
                with attack.outcomes.open("a") as file:
                    print(json.dumps(row), file=file)
                if row["lost"] or row["faults"]:
                    print(f"{kind}:{number}  {row.get('what')}  {row['lost']}  {row['faults']}", file=sys.stderr)
        rows = [row for row in attack.done() if (row["kind"], row["number"]) in set(wanted)]
        print(table(rows))
        print(
            "faults by kind of fault:", dict(Counter(fault.split(" | ")[0] for row in rows for fault in row["faults"]))
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["--fork-commands"]:
        from benchmarks.attacked import fork_commands

        def start() -> None:
            from msltrain.__main__ import main as program

            program()

        with suppress(KeyboardInterrupt):
            fork_commands(start)
    else:
        main()
