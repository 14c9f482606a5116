"""From a dataset's classes to a teacher's: by the user's map, then name, then synonym, whatever the order.

Nothing is guessed: a class that two of the teacher's could be is an error, which a label map settles.
"""

import difflib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..errors import InputError
from ..plain_yaml import mapping_nodes, meaning

logger = logging.get_logger(__name__)

WORDNET_ID = re.compile(r"n\d{8}", re.ASCII)
PLACEHOLDER = re.compile(r"LABEL_\d+", re.ASCII)
# timm's tables of WordNet ids; the first that knows an id translates it.
IMAGENET_SUBSETS = ("imagenet-1k", "imagenet-22k", "imagenet-21k")
FILE_FORM = "a JSON or YAML object: dataset class → teacher class name or index"
REMEDY = f"give --teacher_label_map FILE ({FILE_FORM})"
MAX_LISTED = 10
MAX_CANDIDATES = 5


def teacher_classes(
    config: PreTrainedConfig, class_names: list[str], label_map: dict[str, str | int] | None = None
) -> list[int] | None:
    """The teacher's class for each class of the dataset; None where they are the same in the same order.

    Raises:
        InputError: classes of the dataset that the teacher has not, or not for certain.
    """
    theirs = [config.id2label[index] for index in range(config.num_labels)]
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(theirs))
    if unnamed and len(theirs) == len(class_names) and not label_map:
        logger.warning("the teacher names no classes; they are taken to be in the dataset's order")
        return None
    classes = match_classes(theirs, class_names, label_map)
    return None if classes == list(range(len(theirs))) else classes


def match_classes(
    teacher_names: list[str], class_names: list[str], label_map: dict[str, str | int] | None = None
) -> list[int]:
    """For each class of the dataset the index of the teacher's class, in the order of `class_names`.

    Entries of `label_map` come first. Then names are compared: as they are, normalised, by the synonyms of a comma
    list ("tench, Tinca tinca"), and WordNet ids against words by timm's tables. A name that both sides have equally
    often is matched in order of occurrence. Only through `label_map` do two classes share one of the teacher's.

    Raises:
        InputError: classes without a match or with several, a label map that names what is not there, or WordNet ids
            to translate without timm.
    """
    matching = _matching(teacher_names, class_names, label_map or {})
    if matching.open(range(len(class_names))):
        raise InputError(_complaint(matching))
    matches = {**matching.named, **matching.mapped}
    return [matches[index] for index in range(len(class_names))]


def known_classes(teacher_names: list[str], class_names: list[str]) -> dict[str, int]:
    """As [`match_classes`], of those names that have a certain match; the others are left out."""
    matching = _matching(teacher_names, class_names, {})
    return {class_names[index]: match for index, match in matching.named.items()}


def read_label_map(path: str | Path | dict | None) -> dict[str, str | int] | None:
    """A JSON or YAML file: one object from dataset class name to the teacher's class name or index; None without one.

    It is JSON if it ends so, else YAML, whose keys and words are taken as they are written.

    Raises:
        InputError: a file that is missing, broken or no such object.
    """
    if path is None or isinstance(path, dict):  # a program may give the map itself
        return path
    path = Path(path)
    name = f"teacher_label_map {str(path)!r}"
    try:
        text = path.read_text(encoding="utf-8-sig")
        is_json = path.suffix.lower() == ".json"
        content = json.loads(text) if is_json else {k: _name_or_index(v) for k, v in mapping_nodes(text).items()}
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}; give {FILE_FORM}") from error
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name} is not valid JSON or YAML ({reason}); give {FILE_FORM}") from error
    except TypeError as error:
        raise InputError(f"{name} is not an object but {error}; give {FILE_FORM}") from error
    if not isinstance(content, dict):
        raise InputError(f"{name} is not an object but {type(content).__name__}; give {FILE_FORM}")
    for key, value in content.items():
        # YAML reads yes, no, on and off as truth values, and dates as dates.
        if not all(isinstance(each, (str, int)) and not isinstance(each, bool) for each in (key, value)):
            raise InputError(f"{name}: {key!r}: {value!r} is no pair of names; put names in quotes, give {FILE_FORM}")
    return {str(key): value for key, value in content.items()}


def _matching(teacher_names: list[str], class_names: list[str], label_map: dict[str, str | int]) -> "_Matching":
    """All that can be matched; see [`match_classes`]."""
    matching = _Matching(teacher_names, class_names, _apply_label_map(label_map, teacher_names, class_names))
    ours, theirs = dict(enumerate(class_names)), dict(enumerate(teacher_names))
    matching.match_names(ours, theirs, str)
    matching.match_names(ours, theirs, _normalise)
    if matching.open(ours) and not _are_placeholders(teacher_names):
        (our_ids, our_words), (their_ids, their_words) = _split(ours), _split(theirs)
        matching.match_synonyms(our_words, their_words)
        # Never ids with ids: two ids of one word ("crane") are two classes.
        matching.match_translated(our_ids, their_words)
        matching.match_translated(our_words, their_ids)
    return matching


@dataclass
class _Matching:
    """What is matched so far, by index: dataset class → teacher class.

    Sides are passed as `{index: name}`, whose order is that in which equal names are counted.
    """

    teacher_names: list[str]
    class_names: list[str]
    mapped: dict[int, int]  # by the user's map
    named: dict[int, int] = field(default_factory=dict)  # by name; no two share a teacher class
    ambiguous: dict[int, list[int]] = field(default_factory=dict)  # the teacher's classes that a class could be
    words: dict[str, str] = field(default_factory=dict)  # descriptions of the WordNet ids translated so far

    def open(self, classes: Iterable[int]) -> list[int]:
        """Those of the dataset's classes that have no match."""
        return [index for index in classes if index not in self.mapped and index not in self.named]

    def free(self, classes: Iterable[int]) -> list[int]:
        """Those of the teacher's classes that no class is matched to."""
        used = {*self.mapped.values(), *self.named.values()}
        return [index for index in classes if index not in used]

    def match_names(self, ours: dict[int, str], theirs: dict[int, str], key: Callable[[str], str]):
        """Match names of equal `key`, the k-th open occurrence with the k-th, if there are equally many.

        A teacher class that the user's map has given to another name is still its own namesake's: of "kitten: cat"
        and "cat" both are the teacher's cats. Given to a class of the same name it is used up.
        """
        their_groups = _group(theirs, ours, key)
        used = set(self.named.values())
        for name, group in _group(ours, theirs, key).items():
            gone = {self.mapped[index] for index in group if index in self.mapped}
            left = [index for index in their_groups.get(name, ()) if index not in used and index not in gone]
            open_ = self.open(group)
            if len(open_) == len(left):
                self.named.update(zip(open_, left, strict=True))
            elif left:
                self.ambiguous.update((index, left) for index in open_)

    def match_synonyms(self, ours: dict[int, str], theirs: dict[int, str]):
        """Match a class with the only free teacher class that shares a synonym, if no other class claims that one.

        In rounds, since a match can leave another class with one candidate. What was ambiguous by name stays so.
        """
        sharing = defaultdict(set)
        for index in self.free(theirs):
            for part in _synonyms(theirs[index]):
                sharing[part].add(index)
        candidates = {}
        for index in self.open(ours):
            if index not in self.ambiguous:
                candidates[index] = set().union(*(sharing.get(part, ()) for part in _synonyms(ours[index])))
        while sure := _uncontested(candidates):
            self.named.update(sure)
            used = set(sure.values())
            candidates = {index: them - used for index, them in candidates.items() if index not in sure}
        self.ambiguous.update((index, sorted(them)) for index, them in candidates.items() if them)

    def match_translated(self, ours: dict[int, str], theirs: dict[int, str]):
        """Match one side's WordNet ids with the other's words, which may be all of a description or its first word.

        The exact first word comes before the normalised description: "Cardigan" is a dog, "cardigan" is not.
        """
        if not self.open(ours) or not self.free(theirs):
            return
        ids = {name for name in (*ours.values(), *theirs.values()) if WORDNET_ID.fullmatch(name)}
        self.words.update(_translate(ids))
        our_forms, their_forms = self._in_words(ours), self._in_words(theirs)
        for key in (str, _normalise):
            for ours, theirs in zip(our_forms, their_forms, strict=True):
                self.match_names(ours, theirs, key)
        self.match_synonyms(our_forms[0], their_forms[0])

    def _in_words(self, side: dict[int, str]) -> tuple[dict[int, str], dict[int, str]]:
        """Descriptions and their first words of a side of ids, in ascending order of id; a side of words as it is."""
        known = sorted((name, index) for index, name in side.items() if name in self.words)
        if not known:
            return side, side
        descriptions = {index: self.words[name] for name, index in known}
        return descriptions, {index: description.split(",")[0] for index, description in descriptions.items()}


def _apply_label_map(label_map: dict, teacher_names: list[str], class_names: list[str]) -> dict[int, int]:
    """The user's map in indices."""
    classes, exact, normalised = defaultdict(list), defaultdict(list), defaultdict(list)
    for index, name in enumerate(class_names):
        classes[name].append(index)
    for index, name in enumerate(teacher_names):
        exact[name].append(index)
        normalised[_normalise(name)].append(index)
    normalised.pop("", None)  # "+" and "-" are both normalised to nothing
    mapped = {}
    for key, value in label_map.items():
        if key not in classes:
            raise InputError(f"teacher_label_map: the dataset has no class {key!r}{did_you_mean(key, classes)}")
        given, num_classes = f"teacher_label_map: {key!r} is given", len(teacher_names)
        if isinstance(value, str):
            candidates = exact.get(value) or normalised.get(_normalise(value), [])
            if not candidates:
                raise InputError(
                    f"{given} {value!r}, but the teacher has no such class{did_you_mean(value, teacher_names)}"
                )
            if len(candidates) > 1:
                raise InputError(
                    f"{given} {value!r}, which is ambiguous: it names the teacher's classes {_listed(candidates)}; "
                    "give one of these indices"
                )
            value = candidates[0]
        elif isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{given} {value!r}, which is neither a class name nor an index")
        elif not 0 <= value < num_classes:
            raise InputError(
                f"{given} index {value}, but the teacher has {num_classes} classes, 0 to {num_classes - 1}"
            )
        mapped.update(dict.fromkeys(classes[key], value))
    return mapped


def _name_or_index(node: yaml.Node) -> object:
    """A whole number as it is usually written is an index; every other scalar is a name: `007`, `1e5`, `no`."""
    value = meaning(node)
    is_index = type(value) is int and str(value) == node.value
    return value if is_index or not isinstance(node, yaml.ScalarNode) or value is None else node.value


def _normalise(name: str) -> str:
    """Letters (with their marks) and digits, caseless, in words that are one space apart."""
    name = unicodedata.normalize("NFKC", name).casefold()
    # A vowel sign is a mark, without which many of Hindi's words would be equal.
    kept = (char if char.isalnum() or unicodedata.category(char).startswith("M") else " " for char in name)
    return " ".join("".join(kept).split())


def _synonyms(name: str) -> set[str]:
    return {_normalise(part) for part in name.split(",")} - {""}


def _are_placeholders(names: list[str]) -> bool:
    return all(PLACEHOLDER.fullmatch(name) for name in names)


def _split(side: dict[int, str]) -> tuple[dict[int, str], dict[int, str]]:
    """A side's WordNet ids and its words."""
    ids = {index: name for index, name in side.items() if WORDNET_ID.fullmatch(name)}
    return ids, {index: name for index, name in side.items() if index not in ids}


def _group(side: dict[int, str], other: dict[int, str], key: Callable[[str], str]) -> dict[str, list[int]]:
    """Indices by `key`, in order of occurrence: by the number that a name carries, then in the order of `side`."""
    keys, counts = {key(name) for name in side.values()}, Counter(key(name) for name in other.values())
    groups = defaultdict(list)
    for index, name in side.items():
        base, number = _occurrence(name, keys, counts, key)
        groups[base].append((number, index))
    groups.pop("", None)  # "+" and "-" are both normalised to nothing
    return {base: [index for _, index in sorted(group, key=lambda pair: pair[0])] for base, group in groups.items()}


def _occurrence(name: str, keys: set[str], counts: Counter, key: Callable[[str], str]) -> tuple[str, int]:
    """What a name is an occurrence of, and which: "crane2" may be the second "crane", since datasets need unique names.

    Only beside a "crane" in `keys` it is, where the other side's `counts` have two of them and no "crane2".
    """
    if not counts[key(name)]:
        for cut in range(len(name) - 1, len(name.rstrip("0123456789")) - 1, -1):
            base, digits = key(name[:cut]), name[cut:]
            if base in keys and digits[0] != "0" and 2 <= int(digits) <= counts[base]:
                return base, int(digits)
    return key(name), 1


def _uncontested(candidates: dict[int, set[int]]) -> dict[int, int]:
    """Classes with one candidate that is no other class's only one."""
    claims = {index: next(iter(them)) for index, them in candidates.items() if len(them) == 1}
    counts = Counter(claims.values())
    return {index: claimed for index, claimed in claims.items() if counts[claimed] == 1}


def _translate(ids: set[str]) -> dict[str, str]:
    """The descriptions of WordNet ids, as far as ImageNet's tables know them."""
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise InputError(
            "one of teacher and dataset names classes by WordNet ids, the other by words; to translate them "
            f"pip install timm, or {REMEDY}"
        ) from error
    words = {}
    for subset in IMAGENET_SUBSETS:
        if ids <= words.keys():
            break
        table = ImageNetInfo(subset).label_descriptions(as_dict=True)
        words.update((name, table[name]) for name in ids & table.keys() - words.keys())
    return words


def _complaint(matching: _Matching) -> str:
    """Which classes have no match, and what settles it."""
    classes = matching.open(range(len(matching.class_names)))
    num_ours, num_theirs = len(matching.class_names), len(matching.teacher_names)
    listed = ", ".join(_described(matching, index) for index in classes[:MAX_LISTED])
    more = ", ..." if len(classes) > MAX_LISTED else ""
    if _are_placeholders(matching.teacher_names):
        return (
            f"the teacher does not name its {num_theirs} classes (LABEL_0, LABEL_1, ...), so {len(classes)} of the "
            f"dataset's {num_ours} have no match: {listed}{more}; give their indices by --teacher_label_map FILE "
            "(a JSON or YAML object: dataset class → index)"
        )
    return (
        f"{len(classes)} of the dataset's {num_ours} classes have no certain match among the teacher's {num_theirs}: "
        f"{listed}{more}{_nearest(matching, classes)}; {REMEDY}"
    )


def _described(matching: _Matching, index: int) -> str:
    name, candidates = _spelled(matching, matching.class_names[index]), matching.ambiguous.get(index)
    if not candidates:
        return name
    rivals = ", as others of the dataset" if len(candidates) == 1 else ""
    return f"{name} (ambiguous: teacher class {_listed(candidates)}{rivals})"


def _nearest(matching: _Matching, classes: list[int]) -> str:
    """The teacher's class nearest to the first that is not ambiguous, by their synonyms."""
    first = next((matching.class_names[index] for index in classes if index not in matching.ambiguous), None)
    if first is None:
        return ""
    names, words = matching.teacher_names, matching.words
    synonyms = {part: name for name in names for part in _synonyms(words.get(name, name))}
    for part in sorted(_synonyms(matching.words.get(first, first))):
        near = difflib.get_close_matches(part, synonyms, n=1)
        if near:
            return f"; nearest to {first!r} is {_spelled(matching, synonyms[near[0]])}"
    return ""


def _spelled(matching: _Matching, name: str) -> str:
    """A name in quotes; behind a translated WordNet id its words."""
    return f"{name!r} ({matching.words[name]})" if name in matching.words else repr(name)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest of those that are known, if one is near."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _listed(indices: list[int]) -> str:
    more = " or ..." if len(indices) > MAX_CANDIDATES else ""
    return " or ".join(str(index) for index in indices[:MAX_CANDIDATES]) + more
