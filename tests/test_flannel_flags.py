"""flanneld's command line: every flag in every spelling, the environment, and what Go says about mistakes."""

from __future__ import annotations

import re

import pytest

from canal_udp.cli import flanneld
from canal_udp.errors import UsageError
from canal_udp.flannel.flags import FLAGS, Flag, HelpWanted, Options, Value, read, usage

# name -> default, a text, what that text is read as: everything that flanneld has
TABLE: dict[str, tuple[Value, str, Value]] = {
    "etcd-endpoints": (
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "http://a:1,http://b:2",
        "http://a:1,http://b:2",
    ),
    "etcd-prefix": ("/coreos.com/network", "/x/y", "/x/y"),
    "etcd-keyfile": ("", "/k", "/k"),
    "etcd-certfile": ("", "/c", "/c"),
    "etcd-cafile": ("", "/ca", "/ca"),
    "etcd-username": ("", "u", "u"),
    "etcd-password": ("", "p=w", "p=w"),
    "iface": ((), "eth1", ("eth1",)),
    "iface-regex": ((), "^en", ("^en",)),
    "iface-can-reach": ("", "192.0.2.1", "192.0.2.1"),
    "subnet-file": ("/run/flannel/subnet.env", "/x.env", "/x.env"),
    "public-ip": ("", "192.0.2.7", "192.0.2.7"),
    "public-ipv6": ("", "2001:db8::7", "2001:db8::7"),
    "subnet-lease-renew-margin": (60, "90", 90),
    "ip-masq": (False, "true", True),
    "ip-masq-fully-random-disable": (False, "T", True),
    "kube-subnet-mgr": (False, "1", True),
    "kube-api-url": ("", "https://k", "https://k"),
    "kube-annotation-prefix": ("flannel.alpha.coreos.com", "a.b/c", "a.b/c"),
    "kubeconfig-file": ("", "/kc", "/kc"),
    "version": (False, "TRUE", True),
    "healthz-ip": ("0.0.0.0", "127.0.0.1", "127.0.0.1"),
    "healthz-port": (0, "8081", 8081),
    "iptables-resync": (5, "7", 7),
    "iptables-forward-rules": (True, "false", False),
    "ip-blackhole-route": (False, "t", True),
    "net-config-path": ("/etc/kube-flannel/net-conf.json", "/n.json", "/n.json"),
    "set-node-network-unavailable": (True, "F", False),
    "v": (0, "10", 10),
    "vmodule": ("", "a=1", "a=1"),
    "log_backtrace_at": ("", "x.go:1", "x.go:1"),
}
SWITCHES = [flag for flag in FLAGS if flag.shape == "switch"]


def value(options: Options, flag: Flag) -> Value:
    return getattr(options, flag.shape)(flag.name)  # type: ignore[no-any-return]


def test_the_table_has_every_flag() -> None:
    assert {flag.name: flag.default for flag in FLAGS} == {name: row[0] for name, row in TABLE.items()}


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_in_every_spelling(flag: Flag) -> None:
    default, text, wanted = TABLE[flag.name]
    assert value(read([], {}), flag) == default
    for dashes in ("-", "--"):
        assert value(read([f"{dashes}{flag.name}={text}"], {}), flag) == wanted
        words = [f"{dashes}{flag.name}"] if flag.shape == "switch" else [f"{dashes}{flag.name}", text]
        assert value(read(words, {}), flag) == (True if flag.shape == "switch" else wanted)
    variable = "FLANNELD_" + flag.name.upper().replace("-", "_")
    assert value(read([], {variable: text}), flag) == wanted
    assert value(read([], {variable: ""}), flag) == default, "an empty variable is as if unset"
    assert flag.name in usage("x")


@pytest.mark.parametrize("flag", SWITCHES, ids=lambda flag: flag.name)
def test_the_word_after_a_switch_is_no_value(flag: Flag) -> None:
    options = read([f"-{flag.name}", "false", "-v", "3"], {})
    assert value(options, flag) is True
    assert options.number("v") == 0, "flags end at the first word that is none"


def test_the_command_line_wins() -> None:
    options = read(["-healthz-port", "1"], {"FLANNELD_HEALTHZ_PORT": "2", "FLANNELD_IP_MASQ": "true"})
    assert (options.number("healthz-port"), options.switch("ip-masq")) == (1, True)


def test_lists_grow_and_others_are_replaced() -> None:
    options = read(["-iface", "a", "--iface=b", "-v=1", "-v=2", "-iface-regex", "-x"], {"FLANNELD_IFACE": "c"})
    assert options.list("iface") == ("a", "b")
    assert options.list("iface-regex") == ("-x",), "a value may look like a flag"
    assert options.number("v") == 2


@pytest.mark.parametrize(
    ("text", "number"),
    [("0x1F", 31), ("0b11", 3), ("0o17", 15), ("017", 15), ("1_000", 1000), ("-5", -5), ("+5", 5), ("0", 0)],
)
def test_numbers_as_go_reads_them(text: str, number: int) -> None:
    assert read([f"-v={text}"], {}).number("v") == number


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        pytest.param(["-nonsense"], "flag provided but not defined: -nonsense", id="unknown"),
        pytest.param(["--networks=a"], "flag provided but not defined: -networks", id="removed in flannel 0.8"),
        pytest.param(["---v"], "bad flag syntax: ---v", id="three dashes"),
        pytest.param(["-=v"], "bad flag syntax: -=v", id="no name"),
        pytest.param(["-v"], "flag needs an argument: -v", id="no value"),
        pytest.param(["-v=x"], "invalid value 'x' for flag -v: parse error", id="no number"),
        pytest.param(["-v="], "invalid value '' for flag -v: parse error", id="an empty number"),
        pytest.param(["-v=08"], "invalid value '08' for flag -v: parse error", id="no octal number"),
        pytest.param(["-v=9223372036854775808"], "value out of range", id="too large"),
        pytest.param(["-ip-masq=yes"], "invalid boolean value 'yes' for flag -ip-masq: parse error", id="no boolean"),
    ],
)
def test_mistakes(words: list[str], problem: str) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)):
        read(words, {})


@pytest.mark.parametrize("word", ["-h", "-help", "--help", "--h"])
def test_help(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HelpWanted):
        read([word], {})
    assert flanneld.main([word]) == 0
    assert capsys.readouterr().err.startswith("Usage: canal-flanneld [OPTION]...\n  -etcd-endpoints string\n")


@pytest.mark.parametrize("words", [[], ["--", "-v", "1"], ["-", "-v", "1"], ["word", "-v", "1"]])
def test_what_ends_the_flags(words: list[str]) -> None:
    assert read(words, {}).number("v") == 0


def test_a_bad_variable_is_told_and_passed_over() -> None:
    options = read([], {"FLANNELD_V": "much", "FLANNELD_IP_MASQ": "1"})
    assert options.warnings == ("failed to set FLANNELD_V='much': parse error",)
    assert (options.number("v"), options.switch("ip-masq")) == (0, True)


def test_flags_without_sense_say_so_once() -> None:
    options = read(["-ip-blackhole-route", "-vmodule", "a=1", "-v", "1"], {})
    assert [text.partition(":")[0] for text in options.moot] == ["-ip-blackhole-route", "-vmodule"]
    assert read([], {}).moot == ()


def test_version_and_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert flanneld.main(["-version"]) == 0
    assert capsys.readouterr().err.count("\n") == 1
    assert flanneld.main(["-nonsense"]) == 2  # flanneld: 0
    assert "flag provided but not defined: -nonsense\nUsage:" in capsys.readouterr().err
