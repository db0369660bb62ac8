"""Text to words: what is written short, in digits or in signs is written out as an English speaker says it.

Numbers are put into words by num2words; what a number is (a year, a day, an amount, a time) is told here, by patterns
that are applied one after the other, the most special first.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Final

MARKS: Final = ",.?!"
"""What is kept of punctuation: a short pause, and how a sentence ends."""
LONGEST: Final = 15  # digits of a number that is said as one; a longer one digit by digit
MONTHS: Final = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
MONTH: Final = (
    r"jan(?:uary|\.)?|feb(?:ruary|\.)?|mar(?:ch|\.)?|apr(?:il|\.)?|may|june?\.?|july?\.?|aug(?:ust|\.)?"
    r"|sept?(?:ember|\.)?|oct(?:ober|\.)?|nov(?:ember|\.)?|dec(?:ember|\.)?"
)
CURRENCIES: Final[Mapping[str, tuple[str, str, str, str]]] = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}
SCALES: Final = {"k": "thousand", "m": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
UNITS: Final[Mapping[str, tuple[str, str]]] = {
    "km/h": ("kilometre per hour", "kilometres per hour"),
    "mph": ("mile per hour", "miles per hour"),
    "km": ("kilometre", "kilometres"),
    "cm": ("centimetre", "centimetres"),
    "mm": ("millimetre", "millimetres"),
    "kg": ("kilogram", "kilograms"),
    "mg": ("milligram", "milligrams"),
    "lbs": ("pound", "pounds"),
    "lb": ("pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "ft": ("foot", "feet"),
    "khz": ("kilohertz", "kilohertz"),
    "hz": ("hertz", "hertz"),
    "gb": ("gigabyte", "gigabytes"),
    "mb": ("megabyte", "megabytes"),
    "kb": ("kilobyte", "kilobytes"),
    "ms": ("millisecond", "milliseconds"),
    "min": ("minute", "minutes"),
    "hrs": ("hour", "hours"),
    "°c": ("degree celsius", "degrees celsius"),
    "°f": ("degree fahrenheit", "degrees fahrenheit"),
    "°": ("degree", "degrees"),
    "%": ("percent", "percent"),
    "m": ("metre", "metres"),
    "g": ("gram", "grams"),
    "s": ("second", "seconds"),
}
ABBREVIATIONS: Final[Mapping[str, str]] = {
    "mr.": "mister",
    "mrs.": "missus",
    "ms.": "miz",
    "dr.": "doctor",
    "prof.": "professor",
    "rev.": "reverend",
    "hon.": "honorable",
    "gen.": "general",
    "col.": "colonel",
    "maj.": "major",
    "capt.": "captain",
    "lt.": "lieutenant",
    "sgt.": "sergeant",
    "gov.": "governor",
    "pres.": "president",
    "st.": "saint",
    "jr.": "junior",
    "sr.": "senior",
    "esq.": "esquire",
    "co.": "company",
    "corp.": "corporation",
    "inc.": "incorporated",
    "ltd.": "limited",
    "dept.": "department",
    "est.": "established",
    "approx.": "approximately",
    "vs.": "versus",
    "etc.": "et cetera",
    "e.g.": "for example",
    "i.e.": "that is",
    "ave.": "avenue",
    "mt.": "mount",
    "vol.": "volume",
    "fig.": "figure",
}
ENDING: Final = frozenset({"jr.", "sr.", "esq.", "co.", "corp.", "inc.", "ltd.", "etc.", "ave."})
"""Abbreviations after which a sentence may end: there the stop stays, where a capital or nothing follows."""
SIGNS: Final[Mapping[str, str]] = {
    "&": " and ",
    "+": " plus ",
    "=": " equals ",
    "@": " at ",
    "%": " percent ",
    "\u00d7": " times ",
    "\u00f7": " divided by ",
    **dict.fromkeys(";:\u2014\u2026()[]{}|", ","),
    **dict.fromkeys('\u00a1\u00bf\u00ab\u00bb\u201c\u201d\u201e"*_~^<>#\\/-\u2013', " "),
}
ALIKE: Final = str.maketrans(
    {
        **dict.fromkeys("\u2019\u2018`\u00b4\u02bc", "'"),
        **dict.fromkeys("\u2010\u2011\u2012\u2212", "-"),
    }
)
"""Other signs for an apostrophe and for a hyphen or minus."""
FRACTIONS: Final = {("1", "2"): "one half", ("1", "4"): "one quarter", ("3", "4"): "three quarters"}

NUMBER: Final = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\d+"
Match = re.Match[str]


def normalised(text: str) -> str:
    """Return a text as it is said: lower-case words of a to z with inner apostrophes, spaces, and , . ? ! behind words.

    A normalised text is normalised already. A date of digits and strokes is read as month/day/year unless only
    day/month/year is one. Capitals of two to five letters without a vowel, or with stops between, are spelled.

    Raises:
        ValueError: nothing in it can be said, or it has a letter of another script.

    Example:
        >>> normalised("Dr. Grey paid $3.50 on 2 May 1999!")
        'doctor grey paid three dollars and fifty cents on may second, nineteen ninety nine!'
    """
    found = unicodedata.normalize("NFC", text).translate(ALIKE)
    for pattern, said in _RULES:
        found = pattern.sub(said, found)
    for sign, words in SIGNS.items():
        found = found.replace(sign, words)
    found = _plain(found.lower(), text)
    found = re.sub(r"(?<![a-z])'+|'+(?![a-z])", " ", found)
    found = re.sub(r"\s+", " ", found)
    found = re.sub(r" ?([,.?!])(?:[ ,.?!]*([.?!]))?[ ,.?!]*", _mark, found).strip(" ,")
    found = re.sub(r"^[ ,.?!]+", "", found)
    if not re.search("[a-z]", found):
        raise ValueError(f"the text {text[:40]!r} has nothing to say: no word and no number")
    return found


def _mark(found: Match) -> str:
    """Return the one mark that several together stand for: the last that ends a sentence, else a comma."""
    return f"{found[2] or found[1]} "


def _plain(text: str, whole: str) -> str:
    """Return a text without accents and without what is no letter and no mark.

    Raises:
        ValueError: a letter that is none of a to z with an accent.
    """
    found = []
    spelled = {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "th", "þ": "th"}
    for letter in text:
        base = spelled.get(letter) or unicodedata.normalize("NFKD", letter)
        base = "".join(one for one in base if not unicodedata.combining(one))
        if not re.fullmatch("[a-z' ,.?!]*", base):
            if any(unicodedata.category(one)[0] in "LN" for one in base):
                raise ValueError(
                    f"{letter!r} in {whole[:40]!r} is no sign of English, which this front end reads"
                )
            base = " "
        found.append(base)
    return "".join(found)


def _words(value: str | int, to: str = "cardinal") -> str:
    """Return a number in words, without hyphens and commas."""
    from num2words import num2words

    text = str(value).replace(",", "")
    digits = text.partition(".")[0]
    if to == "cardinal" and (len(digits) > LONGEST or (len(digits) > 1 and digits[0] == "0")):
        return " ".join(_words(digit) for digit in text if digit.isdigit())
    if len(digits) > LONGEST:
        return _words(text)
    if "." in text:
        after = " ".join(_words(digit) for digit in text.partition(".")[2])
        return f"{_words(digits)} point {after}"
    said: str = num2words(int(text), to=to)
    return said.replace("-", " ").replace(",", "")


def _year(text: str) -> str:
    year = int(text)
    if 2000 <= year < 2010 or year % 1000 == 0:
        return _words(year)
    if year % 100 and year % 100 < 10:
        return f"{_words(year // 100)} oh {_words(year % 100)}"
    return _words(year, "year")


def _day(text: str) -> str:
    return _words(re.sub("[a-z]", "", text.lower()), "ordinal")


def _month(text: str) -> str:
    return next(month for month in MONTHS if month.startswith(text.lower()[:3]))


def _date(day: str, month: str, year: str | None) -> str:
    return f"{month} {_day(day)}" + (f", {_year(year)}" if year else "")


def _named_date(found: Match) -> str:
    return _date(found["day"], _month(found["month"]), found["year"])


def _iso_date(found: Match) -> str:
    year, month, day = found.groups()
    return _date(day, MONTHS[int(month) - 1], year)


def _stroke_date(found: Match) -> str:
    first, second, year = found.groups()
    month, day = (first, second) if int(first) <= 12 else (second, first)
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return " ".join(map(_words, (first, second, year)))
    return _date(day, MONTHS[int(month) - 1], year)


def _time(found: Match) -> str:
    hour, minute, half = found.groups()
    later = int(minute)
    said = [_words(str(int(hour)))]
    if later:
        said.append(_words(later) if later > 9 else f"oh {_words(later)}")
    elif not half:
        said.append("o'clock")
    return " ".join(said + ([_spelled(half.replace(".", ""))] if half else []))


def _phone_number(found: Match) -> str:
    return ", ".join(" ".join(map(_words, part)) for part in re.findall(r"\d+", found[0]))


def _money(found: Match) -> str:
    sign, amount, scale = found.groups()
    one, many, part, parts = CURRENCIES[sign]
    if scale:
        return f"{_words(amount)} {SCALES.get(scale.lower(), scale.lower())} {many}"
    whole, _, rest = amount.replace(",", "").partition(".")
    if rest and len(rest) != 2:
        return f"{_words(amount)} {many}"
    said = [] if not int(whole) and int(rest or 0) else [_counted(whole, one, many)]
    if int(rest or 0):
        said.append(_counted(str(int(rest)), part, parts))
    return " and ".join(said)


def _counted(number: str, one: str, many: str) -> str:
    return f"{_words(number)} {one if number == '1' else many}"


def _unit(found: Match) -> str:
    return _counted(found[1], *UNITS[found[2].lower()])


def _fraction(found: Match) -> str:
    top, bottom = found.groups()
    if (top, bottom) in FRACTIONS:
        return FRACTIONS[top, bottom]
    if not 2 < int(bottom) <= 100:
        return f"{_words(top)} over {_words(bottom)}"
    return f"{_words(top)} {_words(bottom, 'ordinal')}{'' if top == '1' else 's'}"


def _decade(found: Match) -> str:
    said = _year(found[1]) if len(found[1]) == 4 else _words(found[1])
    return f"{said[:-1]}ies" if said.endswith("y") else f"{said}s"


def _abbreviation(found: Match) -> str:
    written, after = found[1].lower(), found[2]
    ends = written in ENDING and (not after.strip() or after.strip()[:1].isupper())
    said = ABBREVIATIONS[written]
    if written == "st." and not after.strip().isupper():
        said = "street"
    return said + ("." if ends else "")


def _letters(found: Match) -> str:
    """Return capitals letter by letter, each as a word; a plural keeps its s."""
    letters = re.sub("[^A-Z]", "", found[1])
    return _spelled(letters) + ("'s" if found[0].endswith("s") else "") + " "


def _spelled(letters: str) -> str:
    """Return letters as words; the one that is a word with another sound is written as it is called."""
    return " ".join("ay" if letter == "a" else letter for letter in letters.lower())


def _pattern(text: str, said: Callable[[Match], str] | str, flags: int = 0) -> Any:
    return re.compile(text, flags), said


_SIGNS: Final = "".join(map(re.escape, CURRENCIES))
_ABBREVIATED: Final = "|".join(map(re.escape, ABBREVIATIONS))
_RULES: Final = (
    _pattern(r"(?<=\s)(?:-+|\u2013)(?=\s)(?! \d)|--+", ","),
    _pattern(r"\b(?:https?://)?(?:www\.)?([a-z0-9-]+)\.(com|org|net|edu)\b", r"\1 dot \2", re.I),
    _pattern(rf"(?<![\w.])({_ABBREVIATED})(?!\w)(?=(\s*\w?))", _abbreviation, re.I),
    _pattern(r"(?<![\w.])\.(?=\d)", "0."),
    _pattern(r"\b[Nn]o\.\s*(?=\d)|#\s*(?=\d)", "number "),
    _pattern(
        rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<month>{MONTH})(?!\w),?(?:\s+(?P<year>\d{{4}})\b)?",
        _named_date,
        re.I,
    ),
    _pattern(
        rf"\b(?P<month>{MONTH})\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?!\s*[:/])(?:,?\s+(?P<year>\d{{4}})\b)?",
        _named_date,
        re.I,
    ),
    _pattern(
        rf"\b(?P<month>{MONTH})\s+(?P<year>\d{{4}})\b",
        lambda m: f"{_month(m['month'])} {_year(m['year'])}",
        re.I,
    ),
    _pattern(r"\b(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])\b", _iso_date),
    _pattern(r"\b(\d{1,2})/(\d{1,2})/(\d{4})\b", _stroke_date),
    _pattern(r"(?<![\w-])(?:\(?\d{3}\)?[- ])?\d{3}-\d{4}(?![\w-])", _phone_number),
    _pattern(r"(?<=\d)(?:[-\u2013]| [-\u2013] )(?=\d)", " to "),
    _pattern(rf"(?<![\w.])-(?=[\d{_SIGNS}])", "minus "),
    _pattern(r"\b([01]?\d|2[0-3]):([0-5]\d)(?:\s*([ap]\.?m\b\.?))?", _time, re.I),
    _pattern(
        r"\b(\d{1,2})\s*([ap])\.?m\b\.?", lambda m: f"{_words(m[1])} {_spelled(m[2] + 'm')}", re.I
    ),
    _pattern(
        rf"([{_SIGNS}])\s*({NUMBER})"
        r"(?:\s*(thousand|million|billion|trillion|bn|tn|[kmb])\b)?",
        _money,
        re.I,
    ),
    _pattern(r"\b(\d+)(?:st|nd|rd|th)\b", lambda m: _words(m[1], "ordinal"), re.I),
    _pattern(r"(?<![\w.,'])'?(\d{2}|[12]\d{3})'?s\b", _decade),
    _pattern(rf"(?<![\w.])({NUMBER})\s*({'|'.join(map(re.escape, UNITS))})(?!\w)", _unit, re.I),
    _pattern(r"(?<![\w./])(\d{1,3})/(\d{1,3})(?![\w/])", _fraction),
    _pattern(r"(?<![\w.,])(1[1-9]\d\d|20\d\d)(?![\w]|[.,]\d)", lambda m: _year(m[1])),
    _pattern(NUMBER, lambda m: f" {_words(m[0])} "),
    _pattern(r"\b((?:[A-Z]\.){2,})", _letters),
    _pattern(r"\b([B-DF-HJ-NP-TV-XZ]{2,5})s?\b", _letters),
)
