"""Personal data and secrets: what is replaced, and what only looks like it."""

from __future__ import annotations

import hashlib
import random
import secrets
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.clean import scrub
from bigtrain.data.clean.funnel import Funnel
from bigtrain.data.clean.personal import card
from bigtrain.data.clean.pipeline import Pipeline, apply
from bigtrain.data.documents import Document
from bigtrain.data.sources import Source
from bigtrain.errors import UserError

STEP = scrub()
RANDOM_KEY = "".join(random.Random(5).choices(string.ascii_letters + string.digits, k=40))
AFTER = [
    ("write to jane.doe+news@mail.example.co.uk.", "write to <EMAIL>."),
    ("<jane_doe@example.org>, (j@x.io)", "<<EMAIL>>, (<EMAIL>)"),
    ("Call +1 202-456-1414 or (202) 456-1111 today.", "Call <PHONE> or <PHONE> today."),
    ("Tel.: +49 30 18 272 0, +44 20 7946 0958; +33 1 42 92 81 00.", "Tel.: <PHONE>, <PHONE>; <PHONE>."),
    ("202.456.1414, 202-456-1111; (202) 456-1112", "<PHONE>, <PHONE>; <PHONE>"),
    ("Card 4111 1111 1111 1111, 5500-0000-0000-0004, 378282246310005.", "Card <CARD>, <CARD>, <CARD>."),
    ("from 93.184.216.34: GET /", "from <IP_ADDRESS>: GET /"),
    ("host 2606:2800:220:1:248:1893:25c8:1946 and 2a00:1450:4001:81b::200e.", "host <IP_ADDRESS> and <IP_ADDRESS>."),
    ("http://8.8.20.18/x and 1.1.1.10.", "http://<IP_ADDRESS>/x and <IP_ADDRESS>."),
    ("aws AKIAIOSFODNN7EXAMPLE done", "aws <KEY> done"),
    ("url=https://ghp_" + "a1B2" * 9 + "@github.com", "url=https://<KEY>@github.com"),
    ("HF_TOKEN=hf_" + "aB3d" * 8 + "xy", "HF_TOKEN=<KEY>"),
    ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9", "Bearer <KEY>"),
    (
        "a\n-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nAAAA==\n-----END RSA PRIVATE KEY-----\nb",
        "a\n<KEY>\nb",
    ),
    ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\nand so on", "<KEY>\nand so on"),
    ("OPENAI: sk-proj-Ab3d_" + "x9Yz" * 9, "OPENAI: <KEY>"),
    ('password = "hunter2!x9"', 'password = "<KEY>"'),
    ('{"api_key": "9f8a7c6b5d4e3f2a"}', '{"api_key": "<KEY>"}'),
    ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "AWS_SECRET_ACCESS_KEY=<KEY>"),
    (f"the key is {RANDOM_KEY}.", "the key is <KEY>."),
]
UNTOUCHED = [
    "From 1861 to 1865, and in 1914-1918, on 2021-03-04, 04/07/1776 or 12.05.1999 at 12:30:45.",
    "The debt was $58,565,535.85 in 1833, of which 1,200,000.00 was due; 35.02 1810 36.45 1820.",
    "Receipts for 1845. (2) 69.4 - 69 - 81 - 46 - 48, or 27.5 1932 - 10.6 - 55.0.",
    "Version 10.20.30.40, v12.0.1.13, section 12.3.4.10, § 10.11.12.13 and 1.2.3.4.",
    "Private 192.168.1.20, 10.0.0.1, 127.0.0.1, documentation 192.0.2.44, 2001:db8::1, fe80::1, no 300.400.500.600.",
    "ISBN 978-0-14-243724-7, 0-14-243724-9, ISBN 9780142437247; ISSN 1476-4687; doi 10.1145/3292500.3330701.",
    "Not a card: 4111 1111 1111 1112, 1234 5678 9012 3456, 0.4111111111111111, order 4111111111111111111111111.",
    "std::cout << x; a::b; Foo::Bar::baz(); time 10:20:30; MAC 00:1b:44:11:3a:b7; John 3:16.",
    "sha256 " + hashlib.sha256(b"x").hexdigest() + ", uuid 123e4567-e89b-12d3-a456-426614174000.",
    "https://example.com/articles/2021/03/04/How-The-Senate-Voted-On-Bill-1234567/index.html?page=2#Top",
    "getElementsByTagNameAndClassNameAndAttribute2021 = some_very_long_identifier_of_2021_with_words_only_in_it",
    "src/Main/Java/Com/Example/Service/Impl/User2Service3Impl4.java",
    "The token: a word. The secret: nobody knows. password: required. key = value. Turn the key: gently",
    "@handle said: me@home, a@b, foo@bar..com; 3 @ 5 dollars; user@localhost",
    "population 150000000 in 1950, 2024561414 votes, 100-200-3000, 1-2-3, 555-1234, p. 123-456, lines 1200-1245.",
    "At 2016-08-12 08:00:00-0700, 2013/01/01 09:00, 32768-65535 bytes, Clause 252.227-7013, 17179869184 1024.",
    "IoK8sApiAutoscalingV2ObjectMetricSource, K8sApimachineryPkgApisMetaV1ObjectMeta; image_to_token = Attention2d(x)",
    '<div class="sk-toggleable__content-of-a-very-long-name-2-fitted">',
    "Act of July 2, 1862, ch. 128, 12 Stat. 502; 42 U.S.C. 2000e-5(f)(1); Pub. L. 107-110, 115 Stat. 1425.",
    f"alphabet = '{string.ascii_uppercase}{string.ascii_lowercase}{string.digits}+/'",
    "A" * 64 + " " + "=" * 80 + " " + "-" * 80 + " " + "0123456789" * 4 + " " + "abcdefghij" * 5,
]


@pytest.mark.parametrize(("before", "after"), AFTER)
def test_is_replaced(before: str, after: str) -> None:
    assert STEP(before) == after
    assert STEP(after) == after  # tags stay


@pytest.mark.parametrize("text", UNTOUCHED)
def test_stays(text: str) -> None:
    assert STEP(text) == text


def test_counts_by_kind_and_only_the_kinds_that_were_asked_for() -> None:
    text = "a@example.com b@example.com 93.184.216.34"
    step = scrub()
    assert step(text) == "<EMAIL> <EMAIL> <IP_ADDRESS>"
    assert step.counts == {"<EMAIL>": 2, "<IP_ADDRESS>": 1}
    assert scrub(kinds=("ip",))(text) == "a@example.com b@example.com <IP_ADDRESS>"


def test_national_numbers_of_other_regions() -> None:
    assert scrub(phone_regions=("FR",))("01 42 92 81 00, (202) 456-1111") == "<PHONE>, (202) 456-1111"


def test_random_keys_are_found_and_prose_is_not() -> None:
    """400 keys of 40 characters, base 64 without and with its signs: at least 97 in 100 go."""
    keys = [secrets.token_urlsafe(30) for _ in range(400)]
    gone = sum(STEP(f"x {key} y") == "x <KEY> y" for key in keys)
    assert gone >= 388


@settings(max_examples=100, deadline=None)
@given(st.integers(10**14, 10**15 - 1))
def test_one_last_digit_of_ten_makes_a_card(number: int) -> None:
    digits = "4" + str(number)[1:]
    assert sum(card(f"{digits}{last}") for last in range(10)) == 1


def test_wrong_settings() -> None:
    with pytest.raises(UserError, match="no kind 'emial'.*email"):
        scrub(kinds=("emial",))
    with pytest.raises(UserError, match="'UK' is no region"):
        scrub(phone_regions=("UK",))


def test_the_funnel_has_the_counts_and_no_example_has_what_was_taken_out(tmp_path: Path) -> None:
    pipeline = Pipeline([{"_target_": "bigtrain.data.clean.scrub"}])
    parts = []
    for offset, text in enumerate(["ask a@example.com", "ask b@example.com of 93.184.216.34", "ask nobody"]):
        parts.append(pipeline.funnel())
        documents = list(apply([Document(text, 0, offset)], pipeline.before, parts[-1], [Source("a.txt", "text")]))
        assert "@" not in documents[0].text
    funnel = pipeline.funnel()
    for part in reversed(parts):
        funnel.merge(part)
    funnel.write(tmp_path / "funnel.json")
    again = Funnel.read(tmp_path / "funnel.json")
    assert again.steps[0].replaced == {"<EMAIL>": 2, "<IP_ADDRESS>": 1} and again.steps[0].changed == 2
    assert "<EMAIL> (2)" in again.table()
    written = (tmp_path / "funnel.json").read_text()
    assert "example.com" not in written and "93.184" not in written and "ask <EMAIL>" in written
