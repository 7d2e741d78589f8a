"""Personal data and secrets are replaced by tags: keys, e-mail addresses, cards, IP addresses, phone numbers.

Each kind is looked for with a regular expression and then judged by what its own standard says, so that dates, version
and section numbers, prices, ISBNs and checksums stay:

- `key`: credentials by the prefixes that their services give them (AWS, GitHub, GitLab, Google, Hugging Face, npm,
  OpenAI, Slack, Stripe; as GitHub's secret scanning knows them), PEM blocks of private keys (RFC 7468), JSON web
  tokens (RFC 7519), values that are assigned to a name such as `api_key` or `password`, and runs of 32 characters and
  more that are as random as a key: small letters, capitals and digits, taking turns. Digests and UUIDs are none.
- `email`: the addresses of RFC 5322 without quotes and comments, as people write them.
- `card`: 13 to 19 digits with an issuer's beginning and length (ISO/IEC 7812), whose last one is Luhn's check digit.
- `ip`: public addresses, version 4 and 6. Private, local and reserved ones tell of nobody. Four numbers after
  `version`, `section`, `§`, or of one digit each, are no address.
- `phone`: numbers that Google's libphonenumber (the package `phonenumbers`) says are given out: with a `+` those of the
  world, and those of `phone_regions` in their own notation, if brackets, spaces, dashes or dots part them.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable

from bigtrain.errors import UserError, nearest

TAGS = {"key": "<KEY>", "email": "<EMAIL>", "card": "<CARD>", "ip": "<IP_ADDRESS>", "phone": "<PHONE>"}
"""By kind, in the order in which they are replaced: a key may hold what looks like an address or a number."""

PRIVATE_KEY = re.compile(
    r"-----BEGIN ([A-Z ]*)PRIVATE KEY(?: BLOCK)?-----"
    r"(?:.{0,20000}?-----END \1PRIVATE KEY(?: BLOCK)?-----|(?:\s+[A-Za-z0-9+/=]{20,})*)",
    re.DOTALL,
)
# Patterns begin with what the text rarely holds, and look back from there: `re` skips to it at 100 MB/s.
LONG = re.compile(r"(?:\s|\A)\S{20}")
SERVICE_KEY = re.compile(
    r"[AEaeghnsrx](?<![\w-].)(?:(?:(?<=A)KIA|(?<=A)SIA)[A-Z0-9]{16}|(?<=A)Iza[\w-]{35}|(?<=g)h[pousr]_[A-Za-z0-9]{36,251}"
    r"|(?<=g)ithub_pat_\w{82}|(?<=g)lpat-[\w-]{20,}|(?<=h)f_[A-Za-z0-9]{34}|(?<=n)pm_[A-Za-z0-9]{36}"
    r"|(?<=s)k-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{32,}|(?<=x)ox[abeoprs]-[\w-]{10,}|(?<=[rs])k_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|(?<=e)yJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*)(?![\w-])"
)
ASSIGNED = re.compile(r"""([=:]>?["'\s]{0,3})([^\s"'<>(){}\[\],;=:]{8,200}+)(?![(\[{])""")
SECRET_NAME = re.compile(
    r"""(?<![a-z])(?:(?:api|access|auth|secret|private|encryption|client)[_-]?(?:access[_-]?)?(?:key|token|secret)"""
    r"""(?:[_-]?(?:key|id))?|passw(?:or)?d|secret|token)["'\s]{0,3}:?\Z""",
    re.IGNORECASE,
)
RANDOM = re.compile(r"(?<![\w+/=.:@%-])[A-Za-z0-9+/_-]{32,256}={0,2}(?![\w+/@-])")
EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9](?:[\w.%+-]{0,62}[\w%+-])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"[A-Za-z][A-Za-z0-9-]{0,61}[A-Za-z0-9](?![\w-]|\.\w)"
)
CARD = re.compile(r"[2-6](?<![\w.,+-].)(?:[ -]?\d){12,18}(?![\w-]|[.,]\d)")
IPV4 = re.compile(r"\d(?<![\w.-].)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:|:(?=:)){2,7}(?::|[0-9A-Fa-f]{1,4}|:[0-9A-Fa-f]{1,4})(?![\w:])")
PHONE = re.compile(
    r"[+(\d](?<![\w.,+/-].)(?:(?<=\+)\d|(?<=\()\d{2,4}\)|(?<=\d)\d{1,3})[ .\-/\u2010-\u2013]?"
    r"[\d(][\d+ ().\-/\u2010-\u2013]{4,60}\d(?![\w-]|[.,]\d)"
)
NUMBERED = re.compile(
    r"(?:\b(?:version|ver|v|release|rev|section|sec|sect|chapter|article|clause|rule|item|fig|figure|table)"
    r"\.?|§|¶)\s{0,2}$",
    re.IGNORECASE,
)

ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|22(?:2[1-9]|[3-9]\d)|2[3-6]\d\d|27(?:[01]\d|20))\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|(?:6011|65\d\d|64[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
"""Visa, Mastercard, American Express, Diners Club, Discover, JCB, UnionPay, with their lengths."""


class Scrub:
    """A step; what the settings mean is told in `bigtrain.data.clean.scrub`."""

    secret = True
    """No example of a report shows what was there before."""

    def __init__(self, *, kinds: Iterable[str], phone_regions: Iterable[str]) -> None:
        """Raises: UserError: an unknown kind or region, or a package is missing."""
        kinds, self.phone_regions = set(kinds), tuple(phone_regions)
        for kind in kinds:
            if kind not in TAGS:
                raise UserError(
                    f"scrub: there is no kind '{kind}'; kinds are {', '.join(TAGS)}.{nearest(kind, list(TAGS))}"
                )
        self.kinds = tuple(kind for kind in TAGS if kind in kinds)
        if "phone" in kinds:
            self._check_regions()
        self.counts: Counter[str] = Counter()
        """What was replaced, by tag."""

    def __call__(self, text: str) -> str:
        """The text, with tags."""
        for kind in self.kinds:
            text = getattr(self, f"_{kind}")(text)
        return text

    def _replace(self, pattern: re.Pattern[str], kind: str, judge: Callable[[re.Match[str]], bool], text: str) -> str:
        def tag(match: re.Match[str]) -> str:
            if not judge(match):
                return match[0]
            self.counts[TAGS[kind]] += 1
            return TAGS[kind]

        return pattern.sub(tag, text)

    def _key(self, text: str) -> str:
        if "PRIVATE KEY" in text:
            text = self._replace(PRIVATE_KEY, "key", _always, text)
        if LONG.search(text):
            text = self._replace(SERVICE_KEY, "key", _always, text)
            text = self._replace(RANDOM, "key", lambda match: random_looking(match[0]), text)
        return ASSIGNED.sub(self._assigned, text)

    def _assigned(self, match: re.Match[str]) -> str:
        between, value = match.groups()
        if not SECRET_NAME.search(match.string[max(0, match.start() - 48) : match.start()]):
            return match[0]
        mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
        if not mixed or _entropy(value) < 2.8 or value.startswith(("/", "$", "%")):
            return match[0]
        self.counts[TAGS["key"]] += 1
        return between + TAGS["key"]

    def _email(self, text: str) -> str:
        return self._replace(EMAIL, "email", _always, text) if "@" in text else text

    def _card(self, text: str) -> str:
        return self._replace(CARD, "card", lambda match: card(re.sub(r"\D", "", match[0])), text)

    def _ip(self, text: str) -> str:
        text = self._replace(IPV4, "ip", _address, text)
        return self._replace(IPV6, "ip", _address6, text) if COLONS.search(text) else text

    def _phone(self, text: str) -> str:
        return PHONE.sub(self._phone_numbers, text)

    def _phone_numbers(self, match: re.Match[str]) -> str:
        """The run of digits and signs with its numbers replaced; national ones are grouped as their country does."""
        from phonenumbers import Leniency, PhoneNumberMatcher

        run = match[0]
        if NUMBERED.search(match.string[max(0, match.start() - 16) : match.start()]):
            return run
        searches: list[tuple[str | None, int]] = [(None, Leniency.VALID)] if "+" in run else []
        searches += [(region, Leniency.STRICT_GROUPING) for region in self.phone_regions]
        for region, leniency in searches:
            for number in reversed(list(PhoneNumberMatcher(run, region, leniency))):
                if number.raw_string.isdigit():
                    continue
                run = run[: number.start] + TAGS["phone"] + run[number.end :]
                self.counts[TAGS["phone"]] += 1
        return run

    def _check_regions(self) -> None:
        try:
            from phonenumbers import SUPPORTED_REGIONS
        except ImportError as error:
            raise UserError("scrub needs phonenumbers for kind 'phone': pip install 'bigtrain[data]'.") from error
        for region in self.phone_regions:
            if region not in SUPPORTED_REGIONS:
                raise UserError(
                    f"scrub: '{region}' is no region of phone numbers; they are ISO 3166's codes, such as US."
                )


def card(digits: str) -> bool:
    """Whether these are a card's digits: issuer, length, and the check digit of Luhn (ISO/IEC 7812-1, annex B)."""
    doubled = [int(d) * 2 for d in digits[-2::-2]]
    total = sum(map(int, digits[::-2])) + sum(d - 9 if d > 9 else d for d in doubled)
    return bool(ISSUED.fullmatch(digits)) and total % 10 == 0


def random_looking(value: str) -> bool:
    """Whether a run of 32 characters and more looks like drawn by chance, not written.

    Of random characters of base 64, about six in ten neighbours are of different kinds (capital, small, digit), in
    names and paths about one or two in ten; a sixth lies in three and more small letters in a row, in names more than
    half does; the entropy of 32 random characters is about 4.6 bits a character.
    """
    if sum(map(len, re.findall(r"[a-z]{3,}", value))) > 0.45 * len(value):
        return False
    kinds = ["A" if c.isupper() else "a" if c.islower() else "0" if c.isdigit() else "-" for c in value.rstrip("=")]
    turns = sum(a != b for a, b in itertools.pairwise(kinds)) / len(kinds)
    return {"A", "a", "0"} <= set(kinds) and kinds.count("-") <= len(kinds) / 10 and turns > 0.4 and _entropy(value) > 4


def _entropy(value: str) -> float:
    """Bits a character (Shannon 1948), by the frequencies in `value` itself."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def _always(match: re.Match[str]) -> bool:
    return True


def _address(match: re.Match[str]) -> bool:
    try:
        public = ipaddress.IPv4Address(match[0]).is_global
    except ValueError:
        return False
    return (
        public
        and len(match[0]) > len("1.2.3.4")
        and not NUMBERED.search(match.string[max(0, match.start() - 16) : match.start()])
    )


def _address6(match: re.Match[str]) -> bool:
    try:
        public = ipaddress.IPv6Address(match[0]).is_global
    except ValueError:
        return False
    return public and match[0].replace("::", ":").count(":") >= 2
