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

from ..errors import InputError
from ..plain_yaml import mapping_nodes, meaning

WORDNET_ID = re.compile(r"n\d{8}", re.ASCII)
PLACEHOLDER = re.compile(r"LABEL_\d+", re.ASCII)
# timm's tables of WordNet ids; the first that knows an id translates it.
IMAGENET_SUBSETS = ("imagenet-1k", "imagenet-22k", "imagenet-21k")
FILE_FORM = "a JSON or YAML object: dataset class → teacher class name or index"
REMEDY = f"give --teacher_label_map FILE ({FILE_FORM})"
MAX_LISTED = 10
MAX_CANDIDATES = 5


def match_classes(
    teacher_names: list[str], class_names: list[str], label_map: dict[str, str | int] | None = None
) -> list[int]:
    """For each class of the dataset the index of the teacher's class.

    Entries of `label_map` come first. Then names are compared: as they are, normalised, by the synonyms of a comma
    list ("tench, Tinca tinca"), and WordNet ids against words by timm's tables. A name that both sides have equally
    often is matched in order of occurrence. Only through `label_map` do two classes share one of the teacher's.

    Args:
        teacher_names: the teacher's classes, in the order of its logits.
        class_names: the dataset's classes, in the order of its labels.
        label_map: from a dataset class to the teacher's class, by name or index.

    Returns:
        One index into `teacher_names` per class, in the order of `class_names`.

    Raises:
        InputError: classes without a match or with several, a label map that names what is not there, or WordNet ids
            to translate without timm.
    """
    mapped = _apply_label_map(label_map or {}, teacher_names, class_names)
    matching = _Matching(teacher_names, class_names, mapped)
    ours, theirs = dict(enumerate(class_names)), dict(enumerate(teacher_names))
    matching.match_names(ours, theirs, str)
    matching.match_names(ours, theirs, _normalise)
    if matching.open(ours) and not _are_placeholders(teacher_names):
        (our_ids, our_words), (their_ids, their_words) = _split(ours), _split(theirs)
        matching.match_synonyms(our_words, their_words)
        # Never ids with ids: two ids of one word ("crane") are two classes.
        matching.match_translated(our_ids, their_words)
        matching.match_translated(our_words, their_ids)
    if matching.open(ours):
        raise InputError(_complaint(matching))
    return [matching.found(index) for index in ours]


def read_label_map(path) -> dict[str, str | int] | None:
    """A JSON or YAML file: one object from dataset class name to the teacher's class name or index.

    Args:
        path: JSON if it ends so, else YAML, whose keys and words are taken as they are written. None, or what was read
            before, comes back as it is.

    Returns:
        The file's object, its keys as strings.

    Raises:
        InputError: a file that is missing, broken or no such object.
    """
    if path is None or isinstance(path, dict):
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
        if not _is_name_or_index(key) or not _is_name_or_index(value):
            raise InputError(f"{name}: {key!r}: {value!r} is no pair of names; put names in quotes, give {FILE_FORM}")
    return {str(key): value for key, value in content.items()}


@dataclass
class _Matching:
    """What is matched so far.

    Sides are passed as `{index: name}`, whose order is that in which equal names are counted.

    Attributes:
        teacher_names, class_names: all names.
        mapped: matches by the user's map: index of a dataset class → index of a teacher class.
        named: matches by name, of which no two share a teacher class.
        ambiguous: dataset class → the teacher's classes that it could be.
        words: WordNet ids translated so far.
    """

    teacher_names: list[str]
    class_names: list[str]
    mapped: dict[int, int]
    named: dict[int, int] = field(default_factory=dict)
    ambiguous: dict[int, list[int]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def found(self, index: int) -> int | None:
        """The teacher's class of a dataset class, if it is matched."""
        return self.mapped.get(index, self.named.get(index))

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
    mapped = {}
    for key, value in label_map.items():
        if key not in classes:
            raise InputError(f"teacher_label_map: the dataset has no class {key!r}{_hint(str(key), classes)}")
        if isinstance(value, str):
            candidates = exact.get(value) or (_normalise(value) and normalised.get(_normalise(value))) or []
            target = _only(candidates, key, value, teacher_names)
        else:
            target = _checked(value, key, len(teacher_names))
        mapped.update(dict.fromkeys(classes[key], target))
    return mapped


def _only(candidates: list[int], key: str, value: str, teacher_names: list[str]) -> int:
    if not candidates:
        hint = _hint(value, teacher_names)
        raise InputError(f"teacher_label_map: {key!r} is given {value!r}, but the teacher has no such class{hint}")
    if len(candidates) > 1:
        raise InputError(
            f"teacher_label_map: {key!r} is given {value!r}, which is ambiguous: it names the teacher's classes "
            f"{_listed(candidates)}; give one of these indices"
        )
    return candidates[0]


def _checked(value, key: str, num_classes: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"teacher_label_map: {key!r} is given {value!r}, which is neither a class name nor an index")
    if not 0 <= value < num_classes:
        raise InputError(
            f"teacher_label_map: {key!r} is given index {value}, but the teacher has {num_classes} classes, "
            f"0 to {num_classes - 1}"
        )
    return value


def _name_or_index(node: yaml.Node) -> object:
    """A whole number as it is usually written is an index; every other scalar is a name: `007`, `1e5`, `no`."""
    value = meaning(node)
    is_index = type(value) is int and str(value) == node.value
    return value if is_index or not isinstance(node, yaml.ScalarNode) or value is None else node.value


def _is_name_or_index(value) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _normalise(name: str) -> str:
    """Letters (with their marks) and digits, caseless, in words that are one space apart."""
    name = unicodedata.normalize("NFKC", name).casefold()
    return " ".join("".join(char if _is_of_a_word(char) else " " for char in name).split())


def _is_of_a_word(char: str) -> bool:
    # A vowel sign is a mark, without which many of Hindi's words would be equal.
    return char.isalnum() or unicodedata.category(char).startswith("M")


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
    synonyms = {}
    for name in matching.teacher_names:
        synonyms.update(dict.fromkeys(_synonyms(matching.words.get(name, name)), name))
    for part in sorted(_synonyms(matching.words.get(first, first))):
        near = difflib.get_close_matches(part, synonyms, n=1)
        if near:
            return f"; nearest to {first!r} is {_spelled(matching, synonyms[near[0]])}"
    return ""


def _spelled(matching: _Matching, name: str) -> str:
    """A name in quotes; behind a translated WordNet id its words."""
    return f"{name!r} ({matching.words[name]})" if name in matching.words else repr(name)


def _hint(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _listed(indices: list[int]) -> str:
    more = " or ..." if len(indices) > MAX_CANDIDATES else ""
    return " or ".join(str(index) for index in indices[:MAX_CANDIDATES]) + more
