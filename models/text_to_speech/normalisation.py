"""Text to words: what is written short, in digits or in signs is written out as an English speaker says it.

Numbers are put into words by num2words; what a number is (a year, a day, an amount, a time) is told here, by patterns
that are applied one after the other, the most special first.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final

from models.text_to_speech.pronunciation import dictionary

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
    "¢": ("cent", "cents", "", ""),
}
CODES: Final[Mapping[str, str]] = {"usd": "$", "eur": "€", "gbp": "£", "jpy": "¥", "inr": "₹"}
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
    "ghz": ("gigahertz", "gigahertz"),
    "mhz": ("megahertz", "megahertz"),
    "khz": ("kilohertz", "kilohertz"),
    "hz": ("hertz", "hertz"),
    "kwh": ("kilowatt hour", "kilowatt hours"),
    "kw": ("kilowatt", "kilowatts"),
    "ml": ("millilitre", "millilitres"),
    "tb": ("terabyte", "terabytes"),
    "gb": ("gigabyte", "gigabytes"),
    "mb": ("megabyte", "megabytes"),
    "kb": ("kilobyte", "kilobytes"),
    "ms": ("millisecond", "milliseconds"),
    "min": ("minute", "minutes"),
    "hrs": ("hour", "hours"),
    "hr": ("hour", "hours"),
    "yrs": ("year", "years"),
    "yr": ("year", "years"),
    "\u03bcm": ("micrometre", "micrometres"),
    "\u03bcs": ("microsecond", "microseconds"),
    "°c": ("degree celsius", "degrees celsius"),
    "°f": ("degree fahrenheit", "degrees fahrenheit"),
    "°": ("degree", "degrees"),
    "%": ("percent", "percent"),
    "m": ("metre", "metres"),
    "g": ("gram", "grams"),
    "s": ("second", "seconds"),
    "v": ("volt", "volts"),
    "w": ("watt", "watts"),
}
PER: Final = {one: one for one in ("hour", "day", "week", "month", "year", "person")} | {
    "h": "hour"
}
CAPITAL: Final = frozenset("vw")
"""Units of one letter are small ones (5 m), but these."""
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
DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
NUMBERED: Final[Mapping[str, str]] = {
    "pp.": "pages",
    "p.": "page",
    "ch.": "chapter",
    "sec.": "section",
    "eq.": "equation",
    "no.": "number",
    "#": "number",
    "§": "section",
}
"""What stands before a number."""
SPELLED: Final = frozenset({"US", "UN", "AI", "ID"})
"""Capitals that are spelled though the dictionary has another word of these letters."""
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
    "\u00b1": " plus or minus ",
    "\u2248": " about ",
    "\u2030": " per mille ",
    "\u03c0": " pi ",
    "\u03bc": " micro ",
    **dict.fromkeys(";:\u2014\u2026()[]{}|", ","),
    **dict.fromkeys('\u00a1\u00bf\u00ab\u00bb\u201c\u201d\u201e"*_~^<>#\\/-\u2013', " "),
}
ALIKE: Final = str.maketrans(
    {
        **dict.fromkeys("\u2019\u2018`\u00b4\u02bc", "'"),
        **dict.fromkeys("\u2010\u2011\u2012\u2212", "-"),
        **{chr(0x2080 + digit): str(digit) for digit in range(10)},  # of CO2
        "\u00b2": "^2",
        "\u00b3": "^3",
        "\u00b5": "\u03bc",
        **dict.fromkeys("\u2122\u00ae\u00a9", " "),
        **{
            sign: f" {top}/{bottom}"
            for sign, top, bottom in zip(
                *("\u00bd\u2153\u2154\u00bc\u00be\u215b", "112131", "233448"), strict=True
            )
        },
    }
)
"""Other signs for an apostrophe, a hyphen or minus, small digits and fractions."""
ROMAN: Final = "(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
FRACTIONS: Final = {("1", "2"): "one half", ("1", "4"): "one quarter", ("3", "4"): "three quarters"}
PART: Final = (
    "chapter|part|section|volume|book|act|scene|war|phase|type|class|appendix|article|figure"
)
RULERS: Final = (
    "henry|louis|charles|george|edward|james|william|richard|elizabeth|philip|francis|napoleon|paul|pius"
    "|benedict|leo|gregory|nicholas|alexander|peter|catherine|ferdinand|frederick|wilhelm|ramses"
)
"""Behind a part a Roman number is a number (Chapter IV), behind a ruler an ordinal (Henry VIII)."""

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
    """Return May 2nd as it is written: `may second`, and with `the` or `of`: `the second of may`."""
    parts = found.groupdict()
    day, month, year = _day(parts["day"]), _month(parts["month"]), parts["year"]
    if parts.get("to"):
        return f"{month} {day} to {_day(parts['to'])}"
    if parts.get("the") or parts.get("of"):
        return f"{parts['the'] or ''}{day} of {month}" + (f", {_year(year)}" if year else "")
    return _date(parts["day"], month, year)


def _iso_date(found: Match) -> str:
    return _date(found["day"], MONTHS[int(found["month"]) - 1], found["year"])


def _stroke_date(found: Match) -> str:
    first, second, year = found.groups()
    month, day = (first, second) if int(first) <= 12 else (second, first)
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return " ".join(map(_words, (first, second, year)))
    return _date(day, MONTHS[int(month) - 1], year)


def _time(found: Match) -> str:
    hour, minute, second, half = found.groups()
    later = int(minute)
    said = [_words(str(int(hour)))]
    if later:
        said.append(_words(later) if later > 9 else f"oh {_words(later)}")
    elif not half:
        said.append("o'clock")
    said += ["and", _counted(str(int(second)), "second", "seconds")] if second else []
    return " ".join(said + ([_spelled(half.replace(".", ""))] if half else []))


def _phone_number(found: Match) -> str:
    country = "plus " if found[0].startswith("+") else ""
    return country + ", ".join(" ".join(map(_words, part)) for part in re.findall(r"\d+", found[0]))


def _money(found: Match) -> str:
    return f" {_amount(found['sign'], found['amount'], found['scale'])}"


def _amounts(found: Match) -> str:
    """Return the two ends of a range whose sign stands once."""
    return f"{_words(found['least'])} to {_amount(found['sign'], found['amount'], found['scale'])}"


def _amount(sign: str, amount: str, scale: str | None) -> str:
    one, many, part, parts = CURRENCIES[CODES.get(sign.lower(), sign)]
    if scale:
        return f"{_words(amount)} {SCALES.get(scale.lower(), scale.lower())} {many}"
    whole, _, rest = amount.replace(",", "").partition(".")
    if rest and (len(rest) != 2 or not part):
        return f"{_words(amount)} {many}"
    said = [] if not int(whole) and int(rest or 0) else [_counted(whole, one, many)]
    if int(rest or 0):
        said.append(_counted(str(int(rest)), part, parts))
    return " and ".join(said)


def _per(found: Match) -> str:
    return f"{found[1]} per {UNITS.get(found[2].lower(), (PER.get(found[2].lower()),))[0]}"


def _counted(number: str, one: str, many: str) -> str:
    return f"{_words(number)} {one if number == '1' else many}"


def _unit(found: Match) -> str:
    number, unit, power = found.groups()
    small = unit.lower()
    if len(unit) == 1 and unit.isalpha() and unit.isupper() != (small in CAPITAL):
        return found[0]
    one, many = UNITS[small]
    kind = {"2": "square ", "3": "cubic ", None: ""}[power]
    return _counted(number, kind + one, kind + many)


def _power(found: Match) -> str:
    return {"2": " squared", "3": " cubed"}.get(found[1], f" to the power of {_words(found[1])}")


def _roman(found: Match) -> str:
    """Return a Roman number in words, behind the word before it; what is none stays."""
    before, letters = found.groups()
    worth = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[letter] for letter in letters]
    number = sum(one if one >= after else -one for one, after in pairwise([*worth, 0]))
    if not before[0].isupper() or not re.fullmatch(ROMAN, letters):
        return found[0]
    ruled = re.fullmatch(RULERS, before, re.I)
    return f"{before} the {_words(number, 'ordinal')}" if ruled else f"{before} {_words(number)}"


def _mixed(found: Match) -> str:
    """Return a number and a fraction of one: two and a half."""
    whole, top, bottom, unit = found.groups()
    part = _fraction_of(top, bottom)
    part = f"a{part.removeprefix('one')}" if top == "1" else part
    return f"{_words(whole)} and {part}" + (f" {UNITS[unit.lower()][1]}" if unit else "")


def _fraction(found: Match) -> str:
    top, bottom, unit = found.groups()
    one = UNITS[unit.lower()][0] if unit else ""
    article = "an" if one.startswith(("hour", "inch", "ounce")) else "a"
    return _fraction_of(top, bottom) + (f" of {article} {one}" if one else "")


def _fraction_of(top: str, bottom: str) -> str:
    if top == bottom:
        return f"{_words(top)} {_words(bottom)}"
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
    """Return letters with stops between, each as a word."""
    return _spelled(re.sub("[^A-Za-z]", "", found[1])) + " "


def _joined(found: Match) -> str:
    return f"{_spelled(found[1])} and {_spelled(found[2])}"


def _capitals(found: Match) -> str:
    """Return capitals letter by letter where no word of the dictionary is meant; a plural keeps its s."""
    letters, plural = found.groups()
    shouted = len(found.string) > len(found[0]) and not re.search("[a-z]", found.string)
    known = letters.lower() in dictionary() and (shouted or letters not in SPELLED)
    if known and re.search("[AEIOU]", letters):
        return letters + ("'s" if plural and f"{letters.lower()}s" not in dictionary() else plural)
    return _spelled(letters) + ("'s" if plural else "")


def _spelled(letters: str) -> str:
    """Return letters as words; the one that is a word with another sound is written as it is called."""
    return " ".join("ay" if letter == "a" else letter for letter in letters.lower())


def _pattern(text: str, said: Callable[[Match], str] | str, flags: int = 0) -> Any:
    return re.compile(text, flags), said


_SIGNS: Final = "".join(map(re.escape, CURRENCIES))
_CODES: Final = "|".join(CODES)
_SCALE: Final = r"(?:\s*(?P<scale>thousand|million|billion|trillion|bn|tn|[kmb])\b)?"
_ABBREVIATED: Final = "|".join(map(re.escape, ABBREVIATIONS))
_UNIT: Final = "|".join(map(re.escape, UNITS))
_AFTER: Final = "|".join([*PER, *map(re.escape, UNITS)])
_NAMED: Final = "|".join(sorted({name for names in CURRENCIES.values() for name in names if name}))
_ORDINAL: Final = r"(?:st|nd|rd|th)?"
_CALENDAR: Final = (
    _pattern(
        r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun)(?:s|rs)?\.(?=,|\s+(?:\d|[A-Z])|$)",
        lambda m: next(day for day in DAYS if day.startswith(m[1].lower())),
    ),
    _pattern(
        rf"\b(?P<month>{MONTH})\s+(?P<day>\d{{1,2}}){_ORDINAL}\s?[-\u2013]\s?(?P<to>\d{{1,2}}){_ORDINAL}\b(?P<year>)",
        _named_date,
        re.I,
    ),
    _pattern(
        rf"\b(?P<day>\d{{1,2}}){_ORDINAL}\s?[-\u2013]\s?(?P<to>\d{{1,2}}){_ORDINAL}\s+(?P<month>{MONTH})(?!\w)(?P<year>)",
        _named_date,
        re.I,
    ),
    _pattern(
        rf"\b(?P<the>the\s+)?(?P<day>\d{{1,2}}){_ORDINAL}\s+(?P<of>of\s+)?(?P<month>{MONTH})(?!\w)"
        r"(?:,?\s+(?P<year>\d{4})\b)?",
        _named_date,
        re.I,
    ),
    _pattern(
        rf"\b(?P<month>{MONTH})\s+(?P<day>\d{{1,2}}){_ORDINAL}\b(?!\s*[:/])(?:,?\s+(?P<year>\d{{4}})\b)?",
        _named_date,
        re.I,
    ),
    _pattern(
        rf"\b(?P<month>{MONTH})\s+(?P<year>\d{{4}})\b",
        lambda m: f"{_month(m['month'])} {_year(m['year'])}",
        re.I,
    ),
    _pattern(
        r"\b(?P<year>\d{4})(?P<by>[-/])(?P<month>0?[1-9]|1[0-2])(?P=by)(?P<day>0?[1-9]|[12]\d|3[01])\b",
        _iso_date,
    ),
    _pattern(
        r"\b(?P<day>0?[1-9]|[12]\d|3[01])\.(?P<month>0?[1-9]|1[0-2])\.(?P<year>\d{4})\b", _iso_date
    ),
    _pattern(r"\b(\d{1,2})/(\d{1,2})/(\d{4})\b", _stroke_date),
    _pattern(r"\b(Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec)\.(?!\w)", lambda m: _month(m[1])),
)
_NUMBERS: Final = (
    _pattern(r"\b24/7\b", "twenty four seven"),
    _pattern(r"\b9/11\b", "nine eleven"),
    _pattern(
        r"(?<![\w.-])(?:(?:\+\d{1,3}|1)[-. ])?\(?\d{3}\)?[-. ]\d{3}[-.]\d{4}(?![\w-])",
        _phone_number,
    ),
    _pattern(r"(?<![\w-])\d{3}-\d{4}(?![\w-])", _phone_number),
    _pattern(r"(?<!\w)\+\d{1,3}(?:[ -]\d{2,4}){2,5}(?![\w-])|(?<!\w)\+\d{9,15}\b", _phone_number),
    _pattern(r"(?<![\w-])1-8\d\d-(?=[A-Z]{3})", lambda m: f"{_phone_number(m)}, "),
    _pattern(
        r"(?<![\d.])\d+(?:\.\d+){2,}(?!\d)",
        lambda m: f" {' point '.join(map(_words, m[0].split('.')))} ",
    ),
    _pattern(rf"([{_SIGNS}])-(?=\d)", r"-\1"),
    _pattern(r"\bUS\$", "$"),
    _pattern(
        rf"(?P<sign>[{_SIGNS}])(?P<least>{NUMBER})\s?[-\u2013]\s?(?P<amount>{NUMBER}){_SCALE}",
        _amounts,
        re.I,
    ),
    _pattern(r"(?<=\d[ap]m|\d(?:st|nd|rd|th))[-\u2013](?=\d)", " to "),
    _pattern(rf"(?<=\d)(?:[-\u2013]| [-\u2013] )(?=[{_SIGNS}]?\d)", " to "),
    _pattern(rf"(?<![\w.])-(?=[\d{_SIGNS}])", "minus "),
    _pattern(r"\b(1[0-2]|0?[1-9])\.([0-5]\d)(?=\s*[ap]\.?m\b)", r"\1:\2", re.I),
    _pattern(
        r"\b([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?(?!\d)(?:\s*([ap]\.?m\b\.?))?", _time, re.I
    ),
    _pattern(
        r"\b(\d{1,2})\s*([ap])\.?m\b\.?", lambda m: f"{_words(m[1])} {_spelled(m[2] + 'm')}", re.I
    ),
    _pattern(r"(?<![\d:.,])(\d+):(\d+)(?![\d:])", r"\1 to \2"),
    _pattern(
        rf"(?:(?<!\d)(?P<sign>[{_SIGNS}]|\b(?:{_CODES})))\s*(?P<amount>{NUMBER}){_SCALE}",
        _money,
        re.I,
    ),
    _pattern(
        rf"(?<![\d.])(?P<amount>{NUMBER}){_SCALE}\s?(?P<sign>[{_SIGNS}]|(?:{_CODES})\b)",
        _money,
        re.I,
    ),
    _pattern(rf"\b({_NAMED})\s?/\s?({_AFTER})(?!\w)", _per, re.I),
    _pattern(
        rf"(?<![\w./])(\d{{1,3}}) (\d{{1,2}})/(\d{{1,3}})(?![\w/])(?:\s?({_UNIT})(?!\w))?",
        _mixed,
        re.I,
    ),
    _pattern(
        rf"(?<![\w./])(\d{{1,3}})/(\d{{1,3}})(?![\w/])(?:\s?({_UNIT})(?!\w))?", _fraction, re.I
    ),
    _pattern(r"\b(\d+)(?:st|nd|rd|th)\b", lambda m: _words(m[1], "ordinal"), re.I),
    _pattern(r"(?<![\w.,])(100|1000)s\b", lambda m: {"100": "hundreds", "1000": "thousands"}[m[1]]),
    _pattern(r"(?<![\w.,'])'?(\d{2}|[12]\d{3})'?s\b", _decade),
    _pattern(r"\b([3-8])'\s?(\d{1,2})\"", lambda m: f"{_words(m[1])} foot {_words(m[2])}"),
    _pattern(rf"(?<![\w.])({NUMBER})(?:in\b|\s?in\.)", lambda m: _counted(m[1], "inch", "inches")),
    _pattern(rf"(?<![\w.])({NUMBER})\s?M\b", lambda m: f"{_words(m[1])} million"),
    _pattern(rf"(?<![\w.^])({NUMBER})\s*({_UNIT})(?:\^([23]))?(?!\w)", _unit, re.I),
    _pattern(r"\^(\d{1,3})(?!\d)", _power),
    _pattern(r"(?<=\d)\s?x\s?(?=\d)", " by "),
    _pattern(r"(?<=\d)\s?\*\s?(?=\d)", " times "),
    _pattern(r"(?<=\d)\s?<\s?(?=\d)", " is less than "),
    _pattern(r"(?<=\d)\s?>\s?(?=\d)", " is greater than "),
    _pattern(r"~\s?(?=\d)", "about "),
    _pattern(r"(?<![\w.,])(1[1-9]\d\d|20\d\d)(?![\w]|[.,]\d)", lambda m: _year(m[1])),
    _pattern(NUMBER, lambda m: f" {_words(m[0])} "),
)
_RULES: Final = (
    _pattern(r"(?<=\s)(?:-+|\u2013)(?=\s)(?! \d)|--+", ","),
    _pattern(
        r"\b(?:https?://)?(?:www\.)?([a-z0-9-]{1,63})\.(com|org|net|edu)\b", r"\1 dot \2", re.I
    ),
    _pattern(
        rf"(?<!\w)({'|'.join(map(re.escape, NUMBERED))})\s*(?=\d)",
        lambda m: f"{NUMBERED[m[1].lower()]} ",
        re.I,
    ),
    _pattern(rf"(?<![\w.])({_ABBREVIATED})(?!\w)(?=(\s*\w?))", _abbreviation, re.I),
    _pattern(r"\bDr(?=\s+[A-Z])", "doctor"),
    _pattern(r"\bPh\.\s?(D)\b\.?", "p h d"),
    _pattern(r"(?<![\w.])\.(?=\d)", "0."),
    _pattern(rf"\b((?i:{PART}))\s+((?![LC]\b|I\s+[a-z])[IVXLC]+)(?!\w)", _roman),
    _pattern(r"\bWorld War I\b", "World War one"),
    _pattern(rf"\b((?i:{RULERS}))\s+((?![LC]\b|I\b(?! of\b))[IVXLC]+)(?!\w)", _roman),
    _pattern(r"\b([A-Z]{1,3})&([A-Z]{1,3})\b", _joined),
    _pattern(r"\b([A-Z]{2,4})(?=\d)", lambda m: f"{_spelled(m[1])} "),
    *_CALENDAR,
    *_NUMBERS,
    _pattern(r"(?<![\w.])([ap]\.m)\.", _letters),
    _pattern(r"\b((?:[A-Z]\.){2,})", _letters),
    _pattern(r"\b([A-Z]{2,4}|[B-DF-HJ-NP-TV-XZ]{5})(s?)\b", _capitals),
)
