"""A corpus of real documents with some that are poisoned, each in one of the ways in which real corpora are."""

from __future__ import annotations

import base64
import json
import lzma
import random
import re
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import accumulate
from pathlib import Path

FOREIGN = {
    "Spanish": "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo "
    "de los de lanza en astillero, adarga antigua, rocín flaco y galgo corredor. Una olla de algo más vaca que carnero,"
    " salpicón las más noches, duelos y quebrantos los sábados, lantejas los viernes, algún palomino de añadidura los "
    "domingos, consumían las tres partes de su hacienda. El resto della concluían sayo de velarte, calzas de velludo "
    "para las fiestas, con sus pantuflos de lo mesmo, y los días de entresemana se honraba con su vellorí de lo más "
    "fino. Tenía en su casa una ama que pasaba de los cuarenta, y una sobrina que no llegaba a los veinte, y un mozo "
    "de campo y plaza, que así ensillaba el rocín como tomaba la podadera.",
    "German": "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich in seinem Bett zu einem "
    "ungeheueren Ungeziefer verwandelt. Er lag auf seinem panzerartig harten Rücken und sah, wenn er den Kopf ein "
    "wenig hob, seinen gewölbten, braunen, von bogenförmigen Versteifungen geteilten Bauch, auf dessen Höhe sich die "
    "Bettdecke, zum gänzlichen Niedergleiten bereit, kaum noch erhalten konnte. Seine vielen, im Vergleich zu seinem "
    "sonstigen Umfang kläglich dünnen Beine flimmerten ihm hilflos vor den Augen. »Was ist mit mir geschehen?« dachte "
    "er. Es war kein Traum. Sein Zimmer, ein richtiges, nur etwas zu kleines Menschenzimmer, lag ruhig zwischen den "
    "vier wohlbekannten Wänden.",
    "Latin": "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae, aliam Aquitani, tertiam qui ipsorum "
    "lingua Celtae, nostra Galli appellantur. Hi omnes lingua, institutis, legibus inter se differunt. Gallos ab "
    "Aquitanis Garumna flumen, a Belgis Matrona et Sequana dividit. Horum omnium fortissimi sunt Belgae, propterea "
    "quod a cultu atque humanitate provinciae longissime absunt, minimeque ad eos mercatores saepe commeant atque ea "
    "quae ad effeminandos animos pertinent important, proximique sunt Germanis, qui trans Rhenum incolunt, quibuscum "
    "continenter bellum gerunt. Qua de causa Helvetii quoque reliquos Gallos virtute praecedunt.",
    "French": "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, mes yeux se fermaient "
    "si vite que je n’avais pas le temps de me dire : « Je m’endors. » Et, une demi-heure après, la pensée qu’il était "
    "temps de chercher le sommeil m’éveillait ; je voulais poser le volume que je croyais avoir encore dans les mains "
    "et souffler ma lumière ; je n’avais pas cessé en dormant de faire des réflexions sur ce que je venais de lire, "
    "mais ces réflexions avaient pris un tour un peu particulier ; il me semblait que j’étais moi-même ce dont parlait "
    "l’ouvrage : une église, un quatuor, la rivalité de François Ier et de Charles-Quint.",
}


def random_tokens(text: str, rng: random.Random) -> str:
    """Pieces of words drawn evenly from all that there are: what ids drawn by chance decode to."""
    pieces = sorted({word[at : at + size] for word in re.findall(r"\w+", text) for size in (2, 3, 4) for at in (0, 2)})
    result = ""
    while len(result) < len(text):
        result += rng.choice(("", " ")) + rng.choice(pieces)
    return result


def shuffled_words(text: str, rng: random.Random) -> str:
    """The same words, in any order."""
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def wrong_encoding(text: str, rng: random.Random) -> str:
    """Written in one encoding and read in another."""
    written, read = rng.choice((("cp037", "latin-1"), ("utf-16-le", "latin-1"), ("utf-16-be", "cp437")))
    return text.encode(written, "replace").decode(read, "replace")


def one_token(text: str, rng: random.Random) -> str:
    """One word of it again and again."""
    word = rng.choice(text.split())
    return f"{word} " * (len(text) // (len(word) + 1))


def base64_block(text: str, rng: random.Random) -> str:
    """Bytes of some file, in lines of 76 characters as in a mail."""
    return base64.encodebytes(rng.randbytes(len(text) * 3 // 4)).decode()


def another_language(text: str, rng: random.Random) -> str:
    """The beginning of a novel, or of a war, about as long."""
    foreign = FOREIGN[rng.choice(sorted(FOREIGN))]
    return (foreign + " " + foreign)[: max(len(text), 200)]


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "random tokens": random_tokens,
    "shuffled words": shuffled_words,
    "wrong encoding": wrong_encoding,
    "one token repeated": one_token,
    "base64": base64_block,
    "another language": another_language,
}


def documents(characters: int = 700) -> list[str]:
    """Moby Dick in stretches of whole paragraphs, of at least so many characters each."""
    packed = resources.files("bigtrain").joinpath("data/corpus/moby-dick.txt.xz").read_bytes()
    found, text = [], ""
    for paragraph in lzma.decompress(packed).decode().split("\n\n"):
        text += paragraph.strip() + "\n\n"
        if len(text) >= characters:
            found.append(text)
            text = ""
    return found


def write(file: Path, texts: Sequence[str]) -> list[int]:
    """JSON lines; the offset of each."""
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts]
    file.write_bytes(b"".join(lines))
    return [0, *accumulate(map(len, lines[:-1]))]


def poison(file: Path, texts: Sequence[str], kind: str, seed: int, count: int = 200) -> int:
    """Writes `count` neighbouring documents of `texts`, one of them poisoned; the offset of that one."""
    rng = random.Random(f"{kind} {seed}")
    first = rng.randrange(len(texts) - count + 1)
    chosen = list(texts[first : first + count])
    at = rng.randrange(count)
    chosen[at] = KINDS[kind](chosen[at], rng)
    return write(file, chosen)[at]
