"""canal bench: overlays against each other, the stages of the data plane, one report against another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from canal_udp.cli.output import print_table

_ABOUT = "Measure. Every benchmark checks what it measured; a report says machine, kernel and every single run."
_OVERLAY = (
    "Compare overlays between pods in namespaces of this machine, one after the other, again and again (root). "
    "Without --full or --only a short selection that takes about three minutes."
)
_QUICK = {"runs": 3, "seconds": 1.0}
_FULL = {"runs": 5, "seconds": 3.0}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    bench = subparsers.add_parser("bench", help="measure", description=_ABOUT)
    commands = bench.add_subparsers(dest="bench", metavar="WHAT", required=True)
    _register_overlay(commands)
    stages = commands.add_parser("stages", help="parse, look up, encapsulate ... without I/O", description=_ABOUT)
    stages.add_argument("--only", type=_words, default=[], metavar="WORD,...", help="benchmarks whose name has a word")
    stages.add_argument("--seconds", type=_positive, default=0.3, metavar="S", help="for each (%(default)s)")
    stages.add_argument("-v", "--verbose", action="store_true", help="show what pytest says")
    _add_report(stages)
    stages.set_defaults(handler=_stages)
    _register_show(commands)
    compare = commands.add_parser("compare", help="two reports", description="What changed between two reports.")
    compare.add_argument("old", type=Path, metavar="OLD")
    compare.add_argument("new", type=Path, metavar="NEW")
    compare.set_defaults(handler=_compare)


def _register_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = commands.add_parser("show", help="a saved report", description="Print the table of a report again.")
    show.add_argument("file", type=Path, metavar="FILE")
    show.add_argument("--markdown", action="store_true", help="for a document")
    show.add_argument("--picture", type=Path, metavar="FILE", help="draw it: .svg, .png or .pdf")
    show.set_defaults(handler=_show)


def _register_overlay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    overlay = commands.add_parser("overlay", help="throughput, latency, loss, cost", description=_OVERLAY)
    overlay.add_argument("--profile", type=_words, default=["wire", "native"], metavar="P,...", help="wire,native")
    overlay.add_argument("--ours", type=_words, default=["canal-vxlan"], metavar="SYSTEM,...", help="(canal-vxlan)")
    overlay.add_argument(
        "--against",
        type=_words,
        default=["kernel-vxlan", "one-by-one"],
        metavar="SYSTEM,...",
        help="(kernel-vxlan,one-by-one)",
    )
    overlay.add_argument("--only", type=_words, default=[], metavar="M,...", help="measures or groups: tcp,udp,rr ...")
    overlay.add_argument("--full", action="store_true", help="every measure, 5 runs of 3 s")
    overlay.add_argument("--runs", type=_count, metavar="N", help="rounds (3)")
    overlay.add_argument("--seconds", type=_positive, metavar="S", help="for each measurement (1)")
    overlay.add_argument(
        "--plugin", type=Path, metavar="FILE", help="Python file with more systems in its list SYSTEMS"
    )
    overlay.add_argument("--picture", type=Path, metavar="FILE", help="draw the comparison: .svg, .png or .pdf")
    overlay.add_argument("--list", action="store_true", help="say which systems and measures there are")
    _add_report(overlay)
    overlay.set_defaults(handler=_overlay)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-j", "--json", type=Path, metavar="FILE", help="write the report there (-: standard output)")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")
    return int(text)


def _overlay(arguments: argparse.Namespace) -> int:
    from canal_udp.bench import overlay, picture, plan, report, systems, table
    from canal_udp.lab.show import Screen

    known = systems.known(arguments.plugin)
    if arguments.list:
        _print_lists(known)
        return 0
    default = _FULL if arguments.full else _QUICK
    chosen = systems.choose([*arguments.ours, *arguments.against], known)
    wanted = plan.Plan(
        plan.profiles(arguments.profile),
        tuple(system.name for system in chosen),
        plan.choose(arguments.only, quick=not arguments.full),
        arguments.runs or int(default["runs"]),
        arguments.seconds or default["seconds"],
    )
    screen = Screen(sys.stderr if _to_stdout(arguments.json) else sys.stdout)
    screen.title(f"{', '.join(wanted.systems)}; {', '.join(wanted.profiles)}: about {_duration(wanted.expected_s)}")
    found = overlay.run(wanted, chosen, screen)
    screen.line()
    for line in table.lines(found):
        screen.line(screen.paint(line, "bad") if line.startswith("WARNING") else line)
    _save(report.to_json(found), arguments.json)
    if arguments.picture:
        picture.draw(found, arguments.picture)
    return 0


def _print_lists(known: dict[str, Any]) -> None:
    from canal_udp.bench.plan import MEASURES

    systems = [{"system": s.name, "what": s.about, "ratios to": s.baseline} for s in known.values()]
    print_table(("system", "what", "ratios to"), systems, "")
    print()
    rows = [{"measure": m.name, "group": m.group, "what": m.title, "short": m.quick} for m in MEASURES]
    print_table(("measure", "group", "what", "short"), rows, "")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _stages(arguments: argparse.Namespace) -> int:
    from canal_udp.bench import stages

    found = stages.run(arguments.seconds, arguments.only, arguments.verbose)
    stream = sys.stderr if _to_stdout(arguments.json) else sys.stdout
    for line in stages.lines(found):
        print(line, file=stream)
    _save(found, arguments.json)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from canal_udp.bench import picture, report, stages, table

    document = report.load(arguments.file)
    if document.get("kind") == "stages":
        lines = stages.markdown(document) if arguments.markdown else stages.lines(document)
    else:
        found = report.from_json(document, str(arguments.file))
        lines = table.markdown(found) if arguments.markdown else table.lines(found)
        if arguments.picture:
            picture.draw(found, arguments.picture)
    for line in lines:
        print(line)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from canal_udp.bench import compare
    from canal_udp.bench.report import load

    names = str(arguments.old), str(arguments.new)
    for line in compare.lines(compare.compare(load(arguments.old), load(arguments.new), names)):
        print(line)
    return 0


def _to_stdout(path: Path | None) -> bool:
    return str(path) == "-"


def _save(document: dict[str, Any], path: Path | None) -> None:
    from canal_udp.bench.report import save
    from canal_udp.cli.output import print_json

    if _to_stdout(path):
        print_json(document)
    elif path is not None:
        save(document, path)
