"""What may differ between two runs of the same code, taken out of texts.

Times and rates, dates, process ids, addresses, ports, folders of the code, progress bars on their
way. Everything else is compared as it is.
"""

import re

BAR = (
    re.compile(  # of tqdm: a label, a percentage, the bar, how many of how many, times in brackets
        r"(?P<label>[^\r\n|]*?): +\d+%\|[^|\r\n]*\| (?P<done>[\d.]+[kM]?)/(?P<total>[\d.]+[kM]?) "
        r"\[[^,\]]*, *[^,\]]*(?:, (?P<more>[^\]]*))?\]"
    )
)
PATTERNS = [
    (re.compile(r"\b\d{4}-\d\d-\d\d[T_ ]\d\d:?\d\d:?\d\d(\.\d+)?(\+00:00|Z)?"), "<date>"),
    (re.compile(r"\b\d{8}-\d{6}\b"), "<date>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d( UTC)?"), "<date>"),
    (re.compile(r"events\.out\.tfevents\.\d+\.[^\s/]+"), "events.out.tfevents"),
    (re.compile(r"\b(epochs? in|after|took|in) \d+(\.\d+)? s\b"), r"\1 <seconds> s"),
    (re.compile(r"^(method\t[^\t]+\t[^\t]+\t[^\t]+\t)\d+\.\d+$", re.M), r"\1<seconds>"),
    (re.compile(r"(?<=, )[\d.]+ (\w+/s)\b"), r"<rate> \1"),
    (re.compile(r"\b0x[0-9a-f]{6,}"), "<address>"),
    (re.compile(r"\b(pid[= ]|process )\d+"), r"\1<pid>"),
    (re.compile(r"(?<=127\.0\.0\.1:)\d+"), "<port>"),
]


def text(content, folders=()):
    """The lines of a text that two runs share; `folders` {path: name} are named, not spelled."""
    for path, name in dict(folders).items():
        content = content.replace(str(path), name)
    content = bars(content)
    for pattern, replacement in PATTERNS:
        content = pattern.sub(replacement, content)
    return content


def bars(content):
    """Each progress bar that ended becomes one line, those on the way go."""

    def last(match):
        if match["done"] != match["total"]:
            return "\n"
        more = f" {match['more']}" if match["more"] else ""
        return f"{match['label']}: {match['done']}/{match['total']}{more}\n"

    if "\r" not in content:
        return content
    lines = [""]
    for line in BAR.sub(last, content.replace("\r", "\n")).split("\n"):
        if line.strip() and line.rstrip() != lines[-1]:  # a bar may come to its end twice
            lines.append(line.rstrip())
    return "\n".join(lines[1:]) + "\n"


def without_times(value):
    """JSON data without its seconds and dates, wherever they stand."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in ("seconds", "created")}
        return {key: without_times(each) for key, each in kept.items()}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def table(content):
    """A table with tabs, without the values of its column `seconds`."""
    rows = [line.split("\t") for line in content.split("\n")]
    if "seconds" in rows[0]:
        column = rows[0].index("seconds")
        for row in rows[1:]:
            if len(row) > column:
                row[column] = "<seconds>"
    return "\n".join("\t".join(row) for row in rows)


def page(content):
    """An HTML report without the seconds of its two tables that tell them."""

    def blank(match):
        return re.sub(r"(</th><td>)[\d.,]+(?=</td>)", r"\1<seconds>", match[0])

    content = re.sub(r"(?s)<caption>Seconds per step</caption>.*?</table>", blank, content)
    return re.sub(r"(<td>\d+</td><td>)[\d,]+\.\d(?=</td></tr>)", r"\1<seconds>", content)
