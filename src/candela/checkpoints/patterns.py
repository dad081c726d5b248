"""Regular expressions of strangers' tokenizers. Oniguruma tries every way to divide a text among repetitions, and some
patterns leave it more ways than there are seconds; those of published tokenizers are of a kind that cannot.

Along one branch at most one repetition without end stands before something that may fail to match, so a text of n
characters is divided in at most n ways from each of its places; what is repeated as a group has one way to match.
"""

from __future__ import annotations

import re

LONGEST = 4000  # characters; DeepSeek's lists of letters have 700
MAX_WAYS = 200  # of one branch, apart from its repetitions without end; GPT-4o's has 16
FEW = 16  # more than that is as good as without end
FLAGS = re.compile(r"\(\?[im]*-?[im]*\)")
OPENING = re.compile(r"\((?:\?(?:[im]*-?[im]*:|=|!|<=|<!|>))?")
COUNT = re.compile(r"\{(\d*),?(\d*)\}")
# References to what a group matched, calls of groups, parts of other characters: all of them engines of their own.
ENGINES = re.compile(r"\\(?:[1-9kgKRXCMcQEO]|x(?![0-9A-Fa-f{])|u(?![0-9A-Fa-f]{4}))")
ESCAPE = re.compile(r"\\(?:[pP]\{\^?\w+\}|x\{[0-9A-Fa-f ]+\}|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}|.)", re.DOTALL)
CLASS = re.compile(r"\[[^\[\]]*\]")
ANY = "\uffff"  # stands for one character of whatever kind: neither a letter nor a sign of the syntax


def check_pattern(pattern: str) -> None:
    """
    Raises:
        ValueError: it might take for ever, or is too odd to tell.
    """
    if len(pattern) > LONGEST:
        raise ValueError(f"it has {len(pattern)} characters; {LONGEST} are the most")
    # In pairs, so that an escaped backslash does not escape what follows it.
    if any(ENGINES.match(found[0] + pattern[found.end() :][:5]) for found in re.finditer(r"\\.", pattern, re.DOTALL)):
        raise ValueError("it refers to other parts of itself, or uses an escape that no published one has")
    plain = ESCAPE.sub(ANY, pattern)
    while (shorter := CLASS.sub(ANY, plain)) != plain:  # the innermost first
        plain = shorter
    if plain.startswith("(?") and (flags := FLAGS.match(plain)):
        plain = plain[flags.end() :]
    reader = _Reader(plain)
    reader.branches(0)
    if reader.at < len(plain):
        raise ValueError("it closes a group that it does not open")


class _Reader:
    def __init__(self, text: str):
        self.text, self.at = text, 0

    def branches(self, depth: int) -> tuple[int, int, int]:
        """What stands between two brackets -> in how many ways it matches, apart from its repetitions without end; how
        many of those one branch has; and how many stand before something that may fail."""
        if depth > 10:
            raise ValueError("its groups are nested too deep")
        ways, endless, demands = 0, 0, 0
        while True:
            branch = self._branch(depth)
            ways, endless, demands = ways + branch[0], max(endless, branch[1]), max(demands, branch[2])
            if not self.text.startswith("|", self.at):
                return ways, endless, demands
            self.at += 1

    def _branch(self, depth: int) -> tuple[int, int, int]:
        ways, endless, demands = 1, 0, 0
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            group = self.text[self.at] == "("
            own, inside, demanded = self._atom(depth)
            low, high = self._quantifier()
            if high > 1 and (own > 1 or inside):
                raise ValueError("it repeats a group that can match in several ways")
            demands = max(demands, endless + demanded if low else demanded)
            if demands > 1:
                raise ValueError("two of its repetitions stand before something that may fail")
            endless += inside + (high - low > FEW)
            if high - low <= FEW:
                own *= high - low + 1
            # A group repeated within a repeated one may match nothing a thousand times a thousand times.
            ways *= max(own, 2) if group and high > 1 else own
            if ways > MAX_WAYS:
                raise ValueError(f"one of its branches can match in more than {MAX_WAYS} ways")
        return ways, endless, demands

    def _atom(self, depth: int) -> tuple[int, int, int]:
        if self.text[self.at] in "*+?" or self._counts():
            raise ValueError("it repeats a repetition, or nothing")
        if self.text[self.at] != "(":
            self.at += 1
            return 1, 0, 0
        opening = OPENING.match(self.text, self.at)
        assert opening
        self.at = opening.end()
        if self.text.startswith("?", self.at):
            raise ValueError("it has a kind of group that no published one has")
        found = self.branches(depth + 1)
        if not self.text.startswith(")", self.at):
            raise ValueError("it opens a group that it does not close")
        self.at += 1
        return found

    def _counts(self) -> re.Match[str] | None:
        count = COUNT.match(self.text, self.at)
        return count if count and (count[1] or count[2]) else None

    def _quantifier(self) -> tuple[int, int]:
        """-> the least and the most times; 2**31 for without end."""
        sign = self.text[self.at : self.at + 1]
        if sign and sign in "*+?":
            self.at += 1
            low, high = {"*": (0, 2**31), "+": (1, 2**31), "?": (0, 1)}[sign]
            if self.text[self.at : self.at + 1] in ("?", "+"):  # lazy, possessive
                self.at += 1
        elif count := self._counts():
            self.at = count.end()
            low = int(count[1] or 0)
            high = int(count[2] or 2**31) if "," in count[0] else low
            if max(low, high if high < 2**31 else 0) > 1000:
                raise ValueError("it counts beyond 1000")
            if self.text.startswith("?", self.at):
                self.at, low = self.at + 1, 0
        else:
            return 1, 1
        return low, high
