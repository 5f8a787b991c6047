"""Writes the man pages and the shell completions of both commands beside itself.

They are made of the parsers, and a wheel installs them where `man` and the shells look for them:

    python -m share.write

A test compares the files with what this module makes.
"""

from pathlib import Path

from retraining.cli.parser import Parser
from retraining.cli.reference import Flag, groups, parsers
from retraining.cli.start import VERSION

FOLDER = Path(__file__).parent
OTHER = {"retrain": "label-image", "label-image": "retrain"}
# Characters that troff reads as commands, or prints as typographic ones.
TROFF = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
)
EXIT_STATUS = """\
.SH EXIT STATUS
.TP
0
Done.
.TP
1
Failed; a line on standard error says why.
.TP
2
The flags were wrong.
.TP
130
Interrupted.
"""


def files() -> dict[Path, str]:
    """Returns {file: its text} of all that is written."""
    made = {}
    for command, parser in parsers().items():
        made[FOLDER / "man" / "man1" / f"{command}.1"] = man_page(command, parser)
        made[FOLDER / "bash-completion" / "completions" / command] = for_bash(command, parser)
        made[FOLDER / "zsh" / "site-functions" / f"_{command}"] = for_zsh(command, parser)
    return made


def all_flags(parser: Parser) -> list[Flag]:
    """Returns the flags of all groups; words that are no flags have no names."""
    return [flag for group in groups(parser) for flag in group.flags]


def man_page(command: str, parser: Parser) -> str:
    """Returns the page of a command for section 1, in troff's macros `man`."""
    summary, description = (parser.description or "").strip().split(".\n\n", 1)
    words = "".join(f" [{flag.value} ...]" for flag in all_flags(parser) if not flag.names)
    parts = [
        f'.TH {command.upper()} 1 "" "{VERSION}"\n',
        f".SH NAME\n{troff(command)} \\- {troff(summary)}\n",
        f".SH SYNOPSIS\n.B {troff(command)}\n[flag ...]{troff(words)}\n",
        f".SH DESCRIPTION\n{troff(description)}\n.SH OPTIONS\n",
    ]
    for group in groups(parser):
        parts.append(f".SS {troff(group.title.capitalize())}\n")
        parts += [_man_entry(flag) for flag in group.flags]
    return "".join([*parts, EXIT_STATUS, f".SH SEE ALSO\n.BR {troff(OTHER[command])} (1)\n"])


def _man_entry(flag: Flag) -> str:
    names = ", ".join(f"\\fB{troff(name)}\\fR" for name in flag.names)
    value = f"\\fI{troff(flag.value)}\\fR" if flag.value else ""
    default = f" (default: {flag.default})" if flag.default else ""
    return f".TP\n{names}{' ' if names and value else ''}{value}\n{troff(flag.help + default)}\n"


def troff(text: str) -> str:
    """Returns a text as troff prints it unchanged."""
    lines = (line.translate(TROFF) for line in text.splitlines())
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in lines)


def for_bash(command: str, parser: Parser) -> str:
    """Returns the completion of a command for bash: flags, their choices, else names of files."""
    flags, function = all_flags(parser), "_" + command.replace("-", "_")
    cases = [
        f"        {'|'.join(flag.names)}) words='{' '.join(flag.choices)}' ;;"
        for flag in flags
        if flag.choices
    ]
    names = " ".join(name for flag in flags for name in flag.names)
    return "\n".join(
        [
            f"# Completes the flags of {command} in bash.",
            f"{function}() {{",
            "    local words=",
            "    COMPREPLY=()",
            "    case $3 in",
            *cases,
            f"        *) [[ $2 == -* ]] && words='{names}' ;;",
            "    esac",
            '    [[ $words ]] && COMPREPLY=($(compgen -W "$words" -- "$2"))',
            "}",
            f"complete -o default -F {function} {command}",
            "",
        ]
    )


def for_zsh(command: str, parser: Parser) -> str:
    """Returns the completion of a command for zsh, which shows the help of each flag as well."""
    lines = [f"#compdef {command}", "", "_arguments \\"]
    for flag in all_flags(parser):
        offered = f"({' '.join(flag.choices)})" if flag.choices else "_files"
        value = f":value:{offered}" if flag.value else ""
        text = "".join(f"\\{letter}" if letter in "[]:\\" else letter for letter in flag.help)
        for name in flag.names or ("*",):
            spec = f"{name}[{text}]{value}" if flag.names else f"*{value}"
            lines.append("    '" + spec.replace("'", "'\\''") + "' \\")
    return "\n".join(lines).removesuffix(" \\") + "\n"


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
