"""canal lab: hosts and pods as namespaces of this machine, with real daemons between them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal_udp.cli.output import print_json
from canal_udp.errors import CanalError, ConfigError, LabError, UsageError

if TYPE_CHECKING:
    from canal_udp.lab.model import Lab
    from canal_udp.lab.state import LabState

_IMPAIRMENTS = {
    "loss": ("loss_percent", "PERCENT", "lose frames"),
    "delay": ("delay_ms", "MS", "keep every frame that long; the order stays"),
    "reorder": ("reorder_percent", "PERCENT", "let later frames overtake"),
    "duplicate": ("duplicate_percent", "PERCENT", "send frames twice"),
    "corrupt": ("corrupt_percent", "PERCENT", "flip a bit of frames"),
    "rate": ("rate_mbit", "MBIT", "limit each port"),
    "blackhole": ("blackhole_bytes", "BYTES", "drop larger IP packets without a word"),
}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    lab = subparsers.add_parser("lab", help="network labs of namespaces and real daemons", description=_ABOUT)
    commands = lab.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)
    _register_up(commands)
    down = commands.add_parser("down", help="take labs down", description="Remove everything that a lab has made.")
    down.add_argument("names", nargs="*", metavar="NAME", help="default: the only lab there is")
    down.add_argument("--all", action="store_true", help="every lab of this machine")
    down.set_defaults(handler=_down)
    ps = commands.add_parser("ps", help="what is there", description="Nodes, pods and faults of labs.")
    ps.add_argument("name", nargs="?", metavar="NAME", help="default: all labs")
    ps.add_argument("-j", "--json", action="store_true", help="print JSON")
    ps.set_defaults(handler=_ps)
    inside = commands.add_parser("exec", help="run a program in a node or pod", description=_EXEC)
    _add_lab(inside)
    inside.add_argument("member", metavar="NAME", help="node, pod, router, or net-NETWORK")
    inside.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD", help="program and arguments (a shell)")
    inside.set_defaults(handler=_exec)
    check = commands.add_parser("check", help="run the checks of the lab file", description=_CHECK)
    _add_lab(check)
    check.add_argument("-j", "--json", action="store_true", help="print JSON")
    check.set_defaults(handler=_check)
    test = commands.add_parser("test", help="try the truth table of the lab file", description=_TEST)
    test.add_argument("file", nargs="?", metavar="FILE", help="bring this lab up for it, and down again")
    test.add_argument("--name", metavar="NAME", help="... name of the lab")
    test.add_argument("--keep", action="store_true", help="... and leave it up")
    _add_lab(test)
    test.add_argument("-j", "--json", action="store_true", help="print JSON")
    test.set_defaults(handler=_test)
    demo = commands.add_parser("demo", help="three nodes, six pods: see it work", description=_DEMO)
    demo.add_argument("--name", default="demo", metavar="NAME", help="name of the lab (%(default)s)")
    demo.add_argument("--down", action="store_true", help="take it down at the end")
    demo.set_defaults(handler=_demo)
    _register_fault(commands)


_ABOUT = "Build networks of hosts and pods on one machine. Every node runs its own daemon; nothing is simulated."
_EXEC = "Run a program in a namespace of a lab; `canal` commands in a node's namespace talk to that node's daemon."
_CHECK = "Run the checks of the lab file: who reaches whom, how fast, and whether data arrives as sent."
_TEST = """Try with real packets who may talk to whom and who may not, as `tests:` in the lab file says: TCP, UDP, SCTP
and ICMP, every pair at once."""
_DEMO = (
    "Bring up three nodes with two pods each, show traffic between them, kill a daemon under load; leaves it running."
)
_FAULT = "Break a running lab. Percentages are of frames; several impairments of one network add up; `clear` ends all."


def _register_up(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    up = commands.add_parser("up", help="bring a lab up", description="Bring up the lab of a file, or a small one.")
    up.add_argument("file", nargs="?", metavar="FILE", help="lab file (YAML); examples/ has some")
    up.add_argument("--nodes", type=_count(1, 100), metavar="N", help="instead of a file: N nodes a, b, c ...")
    up.add_argument("--pods", type=_count(0, 200), metavar="M", help="... with M pods each: a1, a2 ... (2)")
    up.add_argument("--encap", choices=("vxlan", "udp"), help="... encapsulation (vxlan)")
    up.add_argument(
        "--profile", choices=("wire", "native"), help="... wire: real packets; native: the veth as it is (wire)"
    )
    up.add_argument("--name", metavar="NAME", help="name of the lab")
    up.add_argument("--plan", action="store_true", help="print the commands instead of doing them")
    up.add_argument("--print", action="store_true", help="print the lab file instead of bringing it up")
    up.add_argument("--keep", action="store_true", help="leave what was made when it fails")
    up.add_argument("--check", action="store_true", help="run the file's checks when it is up")
    up.set_defaults(handler=_up)


def _register_fault(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fault = commands.add_parser("fault", help="break things while it runs", description=_FAULT)
    _add_lab(fault)
    kinds = fault.add_subparsers(dest="fault", metavar="FAULT", required=True)
    link = kinds.add_parser("link", help="unplug or plug a node's cable")
    link.add_argument("node", metavar="NODE")
    link.add_argument("state", choices=("down", "up"))
    for word, (_, unit, what) in _IMPAIRMENTS.items():
        parser = kinds.add_parser(word, help=what)
        parser.add_argument("value", metavar=unit, type=_quantity)
        parser.add_argument("--network", metavar="NAME", help="default: every network that is a bridge")
        parser.add_argument("--seed", type=int, metavar="N", help="repeat the same decisions (by the lab's own relay)")
        if word == "delay":
            parser.add_argument("--jitter", metavar="MS", type=_quantity, help="give or take")
    mtu = kinds.add_parser("mtu", help="change the MTU of a network")
    mtu.add_argument("value", metavar="BYTES", type=_count(576, 65535))
    mtu.add_argument("--network", metavar="NAME", help="default: every network")
    for word, what in (
        ("kill", "SIGKILL a daemon"),
        ("stop", "SIGSTOP a daemon"),
        ("cont", "SIGCONT a daemon"),
        ("start", "start a daemon that was killed"),
    ):
        kinds.add_parser(word, help=what).add_argument("node", metavar="NODE")
    kinds.add_parser("clear", help="take every fault back, start daemons that were killed")
    fault.set_defaults(handler=_fault)


def _add_lab(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lab", metavar="LAB", help="name of the lab; default: $CANAL_LAB, or the only one there is")


def _count(low: int, high: int) -> Any:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return parse


def _quantity(text: str) -> float:
    """A number; people write its unit behind it."""
    try:
        value = float(text.removesuffix("%").removesuffix("ms"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be 0 or more")
    return value


# -- up, down


def _up(arguments: argparse.Namespace) -> int:
    from canal_udp.lab import run
    from canal_udp.lab.show import Screen, canal

    text, lab = _wanted(arguments)
    if arguments.print:
        print(text, end="")
        return 0
    if arguments.plan:
        return _print_plan(lab)
    screen = Screen()
    with screen.step(f"lab {lab.name} up") as step:
        lab_state = run.up(lab, text, lambda text: screen.progress(step, text), arguments.keep)
        step.detail = f"{len(lab.nodes)} nodes, {len(lab.pods)} pods"
    if arguments.check:
        return _run_checks(lab, lab_state, as_json=False)
    first = next(iter(lab.nodes))
    hint = f"{canal()} lab exec {next(iter(lab.pods), first)} -- bash"
    screen.line(f"  {screen.paint(f'{canal()} lab ps, {hint}, {canal()} lab down {lab.name}', 'dim')}")
    return 0


def _wanted(arguments: argparse.Namespace) -> tuple[str, Lab]:
    """The lab file's text and what it says, from a file or made of --nodes and --pods."""
    from canal_udp.lab.model import parse_lab, small_lab

    made = {key: getattr(arguments, key) for key in ("nodes", "pods", "encap", "profile")}
    name = _checked_name(arguments.name)
    if not arguments.file:
        text = small_lab(
            made["nodes"] or 2,
            2 if made["pods"] is None else made["pods"],
            made["encap"] or "vxlan",
            made["profile"] or "wire",
            name or "lab",
        )
        return text, parse_lab(text, "--nodes", name or "lab")
    if given := [f"--{key}" for key, value in made.items() if value is not None]:
        raise UsageError(f"{' '.join(given)}: a lab file says that itself")
    return _read_file(arguments.file, name)


def _checked_name(given: str | None) -> str:
    from canal_udp.lab.reader import NAME, NAME_RULE

    if given and not NAME.fullmatch(given):
        raise UsageError(f"--name {given!r}: {NAME_RULE}")
    return given or ""


def _read_file(given: str, name: str) -> tuple[str, Lab]:
    """A lab file's text and what it says; `name` goes before the one in it."""
    from canal_udp.lab.model import parse_lab

    file = Path(given)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(getattr(error, "strerror", None) or "is not UTF-8 text", source=str(file)) from error
    stem = "".join(c if c.isalnum() else "-" for c in file.stem.lower()).strip("-")[:30] or "lab"
    lab = parse_lab(text, str(file), name or stem)
    if name and name != lab.name:
        text = f"lab: {name}\n" + "".join(line for line in text.splitlines(True) if not line.startswith("lab:"))
        lab = parse_lab(text, str(file), name)
    return text, lab


def _print_plan(lab: Lab) -> int:
    from canal_udp.lab import run, state

    for line in run.shell_lines(lab, state.LabState(state.root_dir() / lab.name)):
        print(line)
    return 0


def _down(arguments: argparse.Namespace) -> int:
    from canal_udp.lab import run, state
    from canal_udp.lab.show import Screen

    if arguments.all and arguments.names:
        raise UsageError("either names or --all")
    found = state.labs() if arguments.all else [state.find(name) for name in arguments.names or [None]]
    screen = Screen()
    for lab_state in found:
        with screen.step(f"lab {lab_state.name} down") as step:
            run.down(lab_state, lambda text, step=step: screen.progress(step, text))  # type: ignore[misc]
    if not found:
        screen.line("no lab is up")
    return 0


# -- looking


def _ps(arguments: argparse.Namespace) -> int:
    from canal_udp.lab import describe, state
    from canal_udp.lab.show import Screen

    found = [state.find(arguments.name)] if arguments.name else state.labs()
    labs = [describe.describe(lab_state) for lab_state in found]
    if arguments.json:
        print_json(labs)
        return 0
    screen = Screen()
    if not labs:
        screen.line("no lab is up")
    for index, lab in enumerate(labs):
        if index:
            screen.line()
        describe.print_lab(screen, lab)
    return 0


def _exec(arguments: argparse.Namespace) -> int:
    from canal_udp.lab import plan, state
    from canal_udp.lab.reader import suggest

    lab_state = state.find(arguments.lab)
    lab = lab_state.lab()
    spaces = {name: plan.netns(lab, name) for name in (*lab.nodes, *lab.pods, *lab.routers)}
    spaces |= {f"net-{n.name}": plan.network_netns(lab, n.name) for n in lab.networks.values() if n.joint == "bridge"}
    if arguments.member not in spaces:
        raise LabError(f"lab {lab.name!r} has no {arguments.member!r}; {suggest(arguments.member, spaces)}")
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    env = {**os.environ, "CANAL_LAB": lab.name, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    if arguments.member in lab.nodes:
        env["CANAL_RUN_DIR"] = str(lab_state.run_dir(arguments.member))
        env["CANAL_STORE"] = lab_state.store_url(lab)
    command = ["ip", "netns", "exec", spaces[arguments.member], *(argv or [os.environ.get("SHELL", "/bin/sh")])]
    sys.stdout.flush()
    try:
        os.execvpe("ip", command, env)
    except FileNotFoundError:
        raise LabError("ip is not installed: apt-get install iproute2") from None


def _check(arguments: argparse.Namespace) -> int:
    from canal_udp.lab import state

    lab_state = state.find(arguments.lab)
    return _run_checks(lab_state.lab(), lab_state, arguments.json)


def _run_checks(lab: Lab, lab_state: LabState, as_json: bool) -> int:
    from canal_udp.lab import checks, describe
    from canal_udp.lab.show import Screen

    if not lab.checks:
        raise LabError(f"lab {lab.name!r} states no checks; add `checks:` to its file")
    results = checks.run_checks(lab, lab_state.pods())
    if not as_json:
        screen = Screen()
        status = describe.print_results(screen, results)
        return max(status, describe.print_account(screen, checks.account(lab, lab_state)))
    found = [
        {
            "check": r.check.kind,
            "line": r.check.line,
            "from": r.path.source,
            "to": r.path.target,
            "family": r.path.family,
            "good": r.good,
            "detail": r.detail,
        }
        for r in results
    ]
    print_json(found)
    return 0 if all(result["good"] for result in found) and checks.account(lab, lab_state).balanced else 1


def _test(arguments: argparse.Namespace) -> int:
    from canal_udp.lab import run, state
    from canal_udp.lab.show import Screen

    if not arguments.file:
        lab_state = state.find(arguments.lab)
        return _run_tests(lab_state.lab(), lab_state, arguments.json)
    if arguments.lab:
        raise UsageError("either a file, or --lab for one that is up")
    text, lab = _read_file(arguments.file, _checked_name(arguments.name))
    screen = Screen(sys.stderr if arguments.json else sys.stdout)
    with screen.step(f"lab {lab.name} up") as step:
        lab_state = run.up(lab, text, lambda text: screen.progress(step, text))
    with run.interruptible():
        try:
            return _run_tests(lab, lab_state, arguments.json)
        finally:
            if not arguments.keep:
                run.down(lab_state)


def _run_tests(lab: Lab, lab_state: LabState, as_json: bool) -> int:
    from canal_udp.lab import trial
    from canal_udp.lab.show import Screen

    places = trial.places(lab, lab_state.pods())
    seen = trial.look(lab.tests, places)
    if not as_json:
        return trial.print_seen(Screen(), seen, places)
    print_json(trial.rows(seen))
    return 0 if all(one.good for one in seen) else 1


def _demo(arguments: argparse.Namespace) -> int:
    from canal_udp.lab.demo import demo
    from canal_udp.lab.run import interruptible
    from canal_udp.lab.show import Screen

    with interruptible():
        return demo(Screen(), arguments.name, arguments.down)


# -- faults


def _fault(arguments: argparse.Namespace) -> int:
    from canal_udp.lab import state

    lab_state = state.find(arguments.lab)
    lab = lab_state.lab()
    with lab_state.locked():
        print(_do_fault(lab, lab_state, arguments))
    return 0


def _do_fault(lab: Lab, lab_state: LabState, arguments: argparse.Namespace) -> str:
    """Do it and say what is so now."""
    from canal_udp.lab import faults, run

    kind: str = arguments.fault
    if kind == "link":
        faults.link(lab, _node(lab, arguments.node), arguments.state == "up")
        return f"the link of {arguments.node} is {arguments.state}"
    if kind == "mtu":
        networks = [_network(lab, arguments.network)] if arguments.network else list(lab.networks)
        for network in networks:
            faults.mtu(lab, network, arguments.value)
        return f"the MTU of {', '.join(networks)} is {arguments.value}"
    if kind in _IMPAIRMENTS:
        return _impair(lab, lab_state, arguments)
    if kind == "clear":
        faults.clear(lab, lab_state)
        started = run.start_missing(lab, lab_state)
        return "no faults" + (f"; started the daemons of {', '.join(started)}" if started else "")
    node = _node(lab, arguments.node)
    if kind == "start":
        run.start_missing(lab, lab_state, only=node)
        return f"the daemon of {node} runs"
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "cont": signal.SIGCONT}[kind]
    process = faults.send_signal(lab_state, node, number)
    return f"{number.name} to the daemon of {node} (pid {process.pid})"


def _impair(lab: Lab, lab_state: LabState, arguments: argparse.Namespace) -> str:
    from canal_udp.lab import faults
    from canal_udp.lab.impair import Impairment
    from canal_udp.lab.model import FAULT_LIMITS

    field = _IMPAIRMENTS[arguments.fault][0]
    limit = FAULT_LIMITS.get(field, 100)
    if max(arguments.value, getattr(arguments, "jitter", None) or 0) > limit:
        raise UsageError(f"{arguments.fault}: must be 0 to {limit:g}")
    changes: dict[str, Any] = {field: int(arguments.value) if field == "blackhole_bytes" else arguments.value}
    if getattr(arguments, "jitter", None) is not None:
        changes["jitter_ms"] = arguments.jitter
    if arguments.seed is not None:
        changes["seed"] = arguments.seed
    networks = [n.name for n in lab.networks.values() if n.joint == "bridge"]
    if arguments.network:
        networks = [_network(lab, arguments.network)]
    if not networks:
        raise LabError("no network of this lab is a bridge, and a bare veth pair has no middle; say `joint: bridge`")
    lines = []
    for network in networks:
        fault = lab_state.faults().get(network, Impairment()).changed(**changes)
        way = faults.impair(lab, lab_state, network, fault)
        lines.append(f"{network}: {fault.describe()}" + (f" (by {way})" if way != "none" else ""))
    return "\n".join(lines)


def _node(lab: Lab, name: str) -> str:
    return _member(name, list(lab.nodes), "node")


def _network(lab: Lab, name: str) -> str:
    return _member(name, list(lab.networks), "network")


def _member(name: str, known: list[str], what: str) -> str:
    from canal_udp.lab.reader import suggest

    if name not in known:
        raise CanalError(f"no {what} {name!r}; {suggest(name, known)}")
    return name
