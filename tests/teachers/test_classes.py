"""From a dataset's classes to a teacher's: small cases by hand, laws on any names, and ImageNet's own names."""

import difflib
import functools
import random
import sys
import unicodedata
from collections import Counter

import pytest
import timm.data
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import ImageNetInfo

from modeling_deit_distill.errors import InputError
from modeling_deit_distill.teachers.classes import known_classes, match_classes

IDS = ImageNetInfo("imagenet-1k").label_names()  # in ascending order
NAMES = ImageNetInfo("imagenet-1k").label_descriptions()
HEADS = [name.split(",")[0] for name in NAMES]
CRANES, MAILLOTS = (134, 517), (638, 639)
REMEDY = ("--teacher_label_map FILE", "JSON or YAML object: dataset class → teacher class name or index")


def refusal(*args) -> str:
    with pytest.raises(InputError) as caught:
        match_classes(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def numbered(names: list[str]) -> list[str]:
    """Unique names, as a dataset must have them: "crane", "crane2"."""
    seen, unique = Counter(), []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}{seen[name]}")
    return unique


def shuffled(draws: random.Random, classes, keep: tuple[tuple[int, int], ...] = ()) -> list[int]:
    """Some of ImageNet's classes in random order. The pairs in `keep` stay in ascending order."""
    order = draws.sample(list(classes), len(classes))
    for first, second in keep:
        if first in order and second in order:
            places = sorted((order.index(first), order.index(second)))
            order[places[0]], order[places[1]] = first, second
    return order


def pick(names: list[str], order: list[int]) -> list[str]:
    return [names[index] for index in order]


@pytest.fixture(autouse=True, scope="module")
def tables_read_once():
    """timm reads its tables anew for each `ImageNetInfo`, which takes longer than most tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm.data, "ImageNetInfo", functools.cache(ImageNetInfo))
        yield


@pytest.fixture
def no_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.data", None)


# --- by name --------------------------------------------------------------------------------------------------------


def test_equal_names_match_in_any_order():
    assert match_classes(["cat", "dog", "owl"], ["cat", "dog", "owl"]) == [0, 1, 2]
    assert match_classes(["cat", "dog", "owl"], ["owl", "cat", "dog"]) == [2, 0, 1]


def test_a_teacher_may_know_more_classes():
    assert match_classes(["cat", "dog", "owl", "emu"], ["emu", "dog"]) == [3, 1]


def test_names_match_normalised():
    for ours, theirs in [
        ("Great White  Shark", "great_white-shark"),
        ("STRASSE", "straße"),  # casefold, where lower() keeps ß
        ("Ｆｉｇ ②", "fig 2"),  # NFKC: wide letters, a digit in a circle
        ("cafe\u0301", "CAFÉ"),  # é in two characters and in one
        ("jack-o'-lantern", "Jack O Lantern"),
        ("(tench)", "tench"),
        ("speed limit 30", "Speed_limit_30"),
    ]:
        assert match_classes(["other", theirs], [ours]) == [1], ours


def test_letters_digits_marks_and_gaps_still_count():
    for ours, theirs in [("greatwhite", "great white"), ("class 1", "class 2"), ("की", "कि")]:
        assert repr(ours) in refusal([theirs, "other"], [ours])


WORDS = st.lists(st.text("abcdefgäéñöß0123456789", min_size=1, max_size=6), min_size=1, max_size=3).map(tuple)
CASES = st.sampled_from([str, str.upper, str.title, str.swapcase])
FORMS = st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"])
GAPS = st.sampled_from([" ", "_", "-", "  ", "' "])


@st.composite
def two_spellings(draw) -> list[tuple[str, str]]:
    """Names that differ in more than their spelling, each in two spellings."""
    names = draw(st.lists(WORDS, min_size=1, max_size=12, unique_by=lambda words: " ".join(words).casefold()))

    def spelled(words):
        return unicodedata.normalize(draw(FORMS), draw(CASES)(draw(GAPS).join(words)))

    return [(spelled(words), spelled(words)) for words in names]


@settings(max_examples=50, deadline=None)
@given(two_spellings(), st.data())
def test_any_permutation_in_any_spelling_is_found(names, data):
    theirs = data.draw(st.permutations(range(len(names))))
    ours = data.draw(st.permutations(range(len(names))))[: data.draw(st.integers(1, len(names)))]
    found = match_classes([names[index][1] for index in theirs], [names[index][0] for index in ours])
    assert [theirs[place] for place in found] == ours


def test_an_exact_name_goes_before_a_normalised_one():
    assert match_classes(["Cardigan", "cardigan"], ["cardigan", "Cardigan"]) == [1, 0]
    assert match_classes(["CARDIGAN", "cardigan"], ["cardigan"]) == [1]
    assert match_classes(["cardigan", "CARDIGAN"], ["Cardigan", "cardigan"]) == [1, 0]  # what is left of them


def test_names_of_symbols_are_not_all_the_same():
    assert match_classes(["+", "-"], ["-", "+"]) == [1, 0]
    assert "'*'" in refusal(["+", "a"], ["*", "a"])


def test_classes_share_no_teacher_class():
    message = refusal(["cat", "dog"], ["cat", "Cat", "dog"])
    assert message.startswith("1 of the dataset's 3") and "'Cat'" in message


# --- names that occur several times ---------------------------------------------------------------------------------


def test_occurrences_match_in_order():
    assert match_classes(["crane", "owl", "crane"], ["owl", "crane", "crane"]) == [1, 0, 2]
    assert match_classes(["Crane", "owl", "crane"], ["owl", "CRANE", "cRANE"]) == [1, 0, 2]


def test_a_number_tells_the_occurrence_wherever_it_stands():
    assert match_classes(["crane", "owl", "crane"], ["crane", "owl", "crane2"]) == [0, 1, 2]
    assert match_classes(["crane", "owl", "crane"], ["crane2", "crane", "owl"]) == [2, 0, 1]
    assert match_classes(["a", "a", "a"], ["a3", "a", "a2"]) == [2, 0, 1]
    assert match_classes(["crane (1)", "Crane (1)"], ["Crane (1)2", "Crane (1)"]) == [0, 1]  # normalised
    assert match_classes(["x1"] * 12, numbered(["x1"] * 12)) == list(range(12))  # x112 is the 12th x1


def test_a_teacher_trained_on_such_a_dataset_has_numbers_too():
    assert match_classes(["crane2", "crane"], ["crane", "crane2"]) == [1, 0]
    assert match_classes(["crane2", "owl", "crane"], ["crane", "crane", "owl"]) == [2, 0, 1]


def test_a_number_is_a_name_where_the_teacher_has_it():
    # Two classes "crane" and one "crane2": the dataset's crane2 is the latter, its crane could be either.
    message = refusal(["crane", "crane", "crane2"], ["crane", "crane2"])
    assert message.startswith("1 of") and "'crane' (ambiguous: teacher class 0 or 1)" in message


def test_other_numbers_are_no_occurrences():
    for theirs, ours, unmatched in [
        (["crane", "owl"], ["crane", "crane2"], "crane2"),  # the teacher has one only
        (["crane", "crane"], ["owl2", "crane2"], "crane2"),  # no "crane" beside it
        (["crane", "crane"], ["crane", "crane02"], "crane02"),
        (["crane", "crane"], ["crane", "crane1"], "crane1"),
        (["crane", "crane"], ["crane", "crane2", "crane3"], "crane3"),
    ]:
        assert repr(unmatched) in refusal(theirs, ours)


def test_figures_are_names():
    digits = [str(number) for number in range(23)]
    assert match_classes(digits[::-1], digits) == list(range(22, -1, -1))
    assert match_classes(["1", "1", "+", "2"], ["2", "1", "+", "12"]) == [3, 0, 2, 1]


def test_different_counts_are_ambiguous():
    message = refusal(["owl", "crane", "crane"], ["crane", "owl"])
    assert message.startswith("1 of the dataset's 2") and "'crane' (ambiguous: teacher class 1 or 2)" in message
    assert "ambiguous: teacher class 0, as others of the dataset" in refusal(["crane"], ["crane", "crane"])
    assert refusal(["crane"] * 3, ["crane", "crane3"]).count("ambiguous: teacher class 0 or 1 or 2") == 2
    assert "teacher class 0 or 1 or 2 or 3 or 4 or ...)" in refusal(["crane"] * 9, ["crane"])


# --- synonyms -------------------------------------------------------------------------------------------------------


def test_a_synonym_matches():
    teacher = ["goldfish, Carassius auratus", "tench, Tinca tinca"]
    assert match_classes(teacher, ["tench"]) == [1]
    assert match_classes(teacher, ["tinca_tinca", "Goldfish"]) == [1, 0]
    assert match_classes(["tench", "goldfish"], ["golden fish, goldfish"]) == [1]
    assert match_classes(["owl", "tench"], ["n01440764 tench, tench"]) == [1]  # words, though they begin with an id
    assert match_classes(["a, b", "c,d ,"], ["d, e", "x, A"]) == [1, 0]


def test_a_name_goes_before_a_synonym():
    assert match_classes(["ruffed grouse, partridge", "partridge"], ["partridge"]) == [1]
    assert match_classes(["ruffed grouse, partridge", "partridge"], ["partridge", "ruffed grouse"]) == [1, 0]


def test_two_teacher_classes_with_a_synonym_are_ambiguous():
    message = refusal(["horn, cornet", "owl", "French horn, horn"], ["horn", "owl"])
    assert "'horn' (ambiguous: teacher class 0 or 2)" in message
    # A class that has a name of its own is out of the question, as is one that is the other's only one.
    assert match_classes(["horn, cornet", "French horn, horn"], ["horn", "French horn, horn"]) == [0, 1]
    assert match_classes(["horn, cornet", "French horn, horn"], ["horn", "french horn"]) == [0, 1]
    assert match_classes(["a, b", "b, c", "c, d"], ["c", "b", "a"]) == [2, 1, 0]  # one after the other


def test_two_classes_that_claim_one_are_ambiguous():
    message = refusal(["tench, Tinca tinca", "owl"], ["owl", "tench", "Tinca tinca"])
    assert message.startswith("2 of the dataset's 3")
    assert message.count("(ambiguous: teacher class 0, as others of the dataset)") == 2


def test_a_class_that_is_ambiguous_by_name_stays_so():
    # The map has taken one of the cranes, but not said that the other is the dataset's.
    assert "'crane' (ambiguous: teacher class 0 or 1)" in refusal(["crane", "crane"], ["crane", "bird"], {"bird": 0})


# --- the user's map -------------------------------------------------------------------------------------------------


def test_the_map_comes_first():
    teacher = ["cat", "dog", "tench, Tinca tinca"]
    assert match_classes(teacher, ["dog", "cat"], {"dog": "cat", "cat": 1}) == [0, 1]
    assert match_classes(teacher, ["fish", "cat"], {"fish": "TENCH tinca-tinca"}) == [2, 0]
    assert match_classes(teacher, ["first", "last"], {"first": 0, "last": 2}) == [0, 2]
    assert match_classes(["Cat", "cat"], ["x"], {"x": "cat"}) == [1]  # exact before normalised
    assert match_classes(["7", "8"], ["x", "y"], {"x": "8", "y": 0}) == [1, 0]  # "8" is a name


def test_classes_may_share_a_teacher_class_by_the_map():
    assert match_classes(["cat", "dog"], ["tabby", "siamese", "dog"], {"tabby": "cat", "siamese": 0}) == [0, 0, 1]
    assert match_classes(["cat", "dog"], ["kitten", "cat", "dog"], {"kitten": "cat"}) == [0, 0, 1]
    assert match_classes(["cat", "dog"], ["pet", "pet"], {"pet": 1}) == [1, 1]
    # Synonyms are weaker than names: what the map has taken is no longer free.
    assert "'feline'" in refusal(["cat, feline", "dog"], ["kitten", "feline", "dog"], {"kitten": 0})


def test_the_map_settles_one_of_a_pair():
    teacher = ["crane", "owl", "crane"]
    assert match_classes(teacher, ["crane", "crane2"], {"crane": 2}) == [2, 0]
    assert match_classes(teacher, ["crane", "crane2"], {"crane": 0}) == [0, 2]
    assert match_classes(teacher, ["crane", "owl"], {"crane": 2}) == [2, 1]


def test_the_map_serves_placeholders():
    assert match_classes(["LABEL_0", "LABEL_1", "LABEL_2"], ["cat", "dog"], {"cat": 2, "dog": "LABEL_0"}) == [2, 0]


def test_errors_of_the_map():
    for label_map, words in [
        ({"catt": 0}, ("the dataset has no class 'catt'", "did you mean 'cat'?")),
        ({"Cat": 0}, ("the dataset has no class 'Cat'", "did you mean 'cat'?")),  # keys are exact
        ({"zebra": 0}, ("the dataset has no class 'zebra'",)),
        ({"cat": "dgo"}, ("'cat'", "'dgo'", "no such class", "did you mean 'dog'?")),
        ({"cat": "+"}, ("'+'", "no such class")),
        ({"cat": "crane"}, ("'crane'", "ambiguous", "1 or 2", "indices")),
        ({"cat": "CRANE"}, ("'CRANE'", "ambiguous", "1 or 2")),
        ({"cat": 5}, ("'cat'", "index 5", "5 classes", "0 to 4")),
        ({"cat": -1}, ("index -1", "5 classes")),
        ({"cat": True}, ("True", "neither a class name nor an index")),
        ({"cat": 1.0}, ("1.0", "neither")),
    ]:
        message = refusal(["dog", "crane", "crane", "-", "cat"], ["cat", "dog"], label_map)
        assert message.startswith("teacher_label_map: ")
        assert [word for word in words if word not in message] == [], message
        assert ("did you mean" in message) == any("did you mean" in word for word in words), message


# --- ImageNet -------------------------------------------------------------------------------------------------------


def test_the_order_of_ids_is_the_order_of_the_cranes():
    assert sorted(IDS) == IDS and [HEADS.count(word) for word in ("crane", "maillot")] == [2, 2]
    assert [name for name, count in Counter(NAMES).items() if count > 1] == ["crane"]


def test_ids_match_ids_and_descriptions_match_descriptions(no_timm):
    draws = random.Random(0)
    ours, theirs = shuffled(draws, range(1000))[:600], shuffled(draws, range(1000))
    expected = [theirs.index(index) for index in ours]
    for names in (IDS, numbered(NAMES)):
        assert match_classes(pick(names, theirs), pick(names, ours)) == expected


# Words of one side alone cannot tell one crane from the other unless their order or a number does.
WORDINGS = {
    "descriptions": (NAMES, (CRANES,)),
    "first words": (HEADS, (CRANES, MAILLOTS)),
    "numbered descriptions": (numbered(NAMES), ()),
    "numbered first words": (numbered(HEADS), ()),
    "other letters": ([name.upper().replace(" ", "_") for name in NAMES], (CRANES,)),
}


@pytest.mark.parametrize("wording", ["first words", "numbered descriptions"])
def test_all_of_imagenet_between_ids_and_words(wording):
    words, keep = WORDINGS[wording]
    draws = random.Random(0)
    ids, others = shuffled(draws, range(1000)), shuffled(draws, range(1000), keep)
    assert match_classes(pick(words, others), pick(IDS, ids)) == [others.index(index) for index in ids]
    assert match_classes(pick(IDS, ids), pick(words, others)) == [ids.index(index) for index in others]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(WORDINGS)),
    st.sets(st.integers(0, 999), min_size=1, max_size=60),
    st.sets(st.integers(0, 999), max_size=60),
    st.randoms(use_true_random=False),
)
def test_a_part_of_imagenet_between_ids_and_words(wording, ours, more, draws):
    (words, keep), pairs = WORDINGS[wording], {*CRANES, *MAILLOTS}
    known = {*ours, *more, *pairs}  # of a pair, the dataset has both classes or none
    ours = shuffled(draws, ours | pairs if ours & pairs else ours, keep)
    theirs = shuffled(draws, known, keep)
    expected = [theirs.index(index) for index in ours]
    assert match_classes(pick(words, theirs), pick(IDS, ours)) == expected
    assert match_classes(pick(IDS, theirs), pick(words, ours)) == expected


def test_case_tells_the_dog_from_the_garment():
    assert [NAMES[264], NAMES[474]] == ["Cardigan, Cardigan Welsh corgi", "cardigan"]
    assert match_classes(IDS, ["Cardigan"]) == [264]
    assert match_classes(IDS, ["cardigan"]) == [474]
    assert match_classes(HEADS, [IDS[264]]) == [264]


def test_one_crane_of_two_is_ambiguous():
    assert f"(ambiguous: teacher class {CRANES[0]} or {CRANES[1]})" in refusal(NAMES, [IDS[CRANES[1]]])
    assert "(ambiguous: teacher class 134 or 517)" in refusal(IDS, ["crane", "tench"])
    assert match_classes(NAMES, [IDS[index] for index in reversed(CRANES)]) == [517, 134]
    assert match_classes(IDS[::-1], ["crane", "crane2"]) == [999 - 134, 999 - 517]
    assert match_classes(IDS, ["crane", "tench"], {"crane": 517}) == [517, 0]


def test_ids_are_matched_by_synonyms_too():
    assert match_classes(IDS, ["Tinca tinca", "man-eater"]) == [0, 2]
    assert match_classes(["house cat, tabby", "sea fish, tench"], [IDS[0]]) == [1]
    assert "'panda' (ambiguous: teacher class 387 or 388)" in refusal(IDS, ["panda"])


def test_first_words_find_descriptions():
    # "crayfish" and "tub" are synonyms of other classes too, which have first words of their own.
    ours = [index for index in shuffled(random.Random(0), range(1000)) if index not in MAILLOTS]
    assert match_classes(NAMES, pick(numbered(HEADS), ours)) == ours


def test_ids_beyond_the_thousand_are_translated():
    assert not {"n00004475", "n00005787"} & set(IDS)
    assert match_classes(["tench", "being, organism", "benthos"], ["n00005787", "n00004475", IDS[0]]) == [2, 1, 0]
    assert match_classes(["n00005787", "n00004475", IDS[0]], ["tench", "organism", "benthos"]) == [2, 1, 0]


def test_an_id_of_the_larger_google_table_is_translated():
    extra = sorted(
        set(ImageNetInfo("imagenet-21k").label_names()) - set(ImageNetInfo("imagenet-22k").label_names()) - set(IDS)
    )
    words = ImageNetInfo("imagenet-21k").label_name_to_description(extra[0])
    assert match_classes(["tench", words], [extra[0]]) == [1]


def test_two_ids_never_match_by_their_words():
    bird, machine = (IDS[index] for index in CRANES)
    message = refusal([machine, "tench"], [bird, IDS[0]])
    assert message.startswith("1 of the dataset's 2") and repr(bird) in message and "ambiguous" not in message
    assert match_classes([machine, "crane"], [bird, machine]) == [1, 0]


def test_unknown_ids_are_unmatched():
    message = refusal(["tench", "goldfish"], ["n99999999", IDS[0]])
    assert message.startswith("1 of the dataset's 2") and "'n99999999'" in message


def test_words_of_both_kinds_on_a_side():
    assert match_classes([IDS[1], "tench", "owl"], ["goldfish", IDS[0], "owl"]) == [0, 1, 2]


def test_without_timm_ids_against_words_are_an_error(no_timm):
    for teacher, classes in [(NAMES, IDS[:2]), (IDS, HEADS[:2])]:
        message = refusal(teacher, classes)
        assert "pip install timm" in message and all(word in message for word in REMEDY)


def test_timm_is_left_alone_where_nothing_is_to_be_translated(no_timm):
    assert match_classes(IDS, IDS[3:5]) == [3, 4]
    assert match_classes(NAMES, IDS[:2], {IDS[0]: 1, IDS[1]: "tench, Tinca tinca"}) == [1, 0]
    assert "pip install" not in refusal(["cat", "dog"], ["owl"])
    assert "pip install" not in refusal(IDS[:5], [IDS[6]])
    assert "does not name its 2 classes" in refusal(["LABEL_0", "LABEL_1"], IDS[:2])


# --- what is left ---------------------------------------------------------------------------------------------------


def test_the_error_lists_ten_and_names_the_remedy():
    classes = [f"thing {chr(ord('a') + index)}" for index in range(12)]
    message = refusal(["cat", "thin a", "dog"], ["dog", *classes])
    assert "12 of the dataset's 13 classes" in message and "the teacher's 3" in message
    assert all(repr(name) in message for name in classes[:10]) and "'thing k'" not in message and ", ..." in message
    assert "nearest to 'thing a' is 'thin a'" in message
    assert all(word in message for word in REMEDY)
    assert ", ..." not in refusal(["cat"], classes[:10])


def test_the_nearest_class_is_found_by_its_synonyms():
    assert "nearest to 'tenchh' is 'tench, Tinca tinca'" in refusal(NAMES, ["tenchh"])
    assert "nearest to 'tenchh' is 'n01440764' (tench, Tinca tinca)" in refusal(IDS, ["tenchh"])
    assert "nearest to 'goldfis' is 'goldfish'" in refusal(["crane", "crane", "goldfish"], ["crane", "goldfis"])
    assert "nearest" not in refusal(["cat", "dog"], ["xylophone"])
    assert "nearest" not in refusal(["crane", "crane"], ["crane"])


def test_a_teacher_that_names_no_classes():
    message = refusal([f"LABEL_{index}" for index in range(10)], ["cat", "dog"], {"cat": 3})
    assert "the teacher does not name its 10 classes" in message and "1 of the dataset's 2" in message
    assert "'dog'" in message and "'cat'" not in message
    assert "indices by --teacher_label_map FILE" in message
    names = ["LABEL_0", "LABEL_1"]
    assert match_classes(names, names[::-1]) == [1, 0]
    assert "does not name" not in refusal(["LABEL_0", "cat"], ["dog"])


def test_a_name_with_a_line_break_leaves_the_error_in_one_line():
    assert r"'a\nb'" in refusal(["c\nd", "e"], ["a\nb"])


def test_a_large_teacher_is_matched():
    teacher = [f"word{index}, other {index} name, shared" for index in range(5000)]
    assert match_classes(teacher, [f"Other {index} name" for index in range(1000, 1200)]) == list(range(1000, 1200))


def test_the_work_grows_no_faster_than_the_classes(monkeypatch):
    compared, normalise, nearest = Counter(), unicodedata.normalize, difflib.get_close_matches

    def counted(name, function):
        def count(*args, **kwargs):
            compared[name] += 1
            return function(*args, **kwargs)

        return count

    monkeypatch.setattr(unicodedata, "normalize", counted("names", normalise))
    monkeypatch.setattr(difflib, "get_close_matches", counted("searches", nearest))
    counts = []
    for size in (100, 400):
        compared.clear()
        teacher = [f"word{index}, other {index} name, shared" for index in range(size)]
        match_classes(teacher, [f"Other {index} name" for index in range(size)])
        assert "nearest" in refusal(teacher, [f"wordy{index}" for index in range(size)])
        counts.append((compared["names"], compared["searches"]))
    (names, searches), (names_of_more, searches_of_more) = counts
    assert 0 < names_of_more <= 4.2 * names
    assert searches == searches_of_more == 1  # for the class that the message names, not for each


def test_names_without_a_match_are_left_out_where_some_will_do():
    assert known_classes(["T-Shirt", "hat", "tench, Tinca tinca"], ["hat", "other", "t shirt", "n01440764"]) == {
        **{"hat": 1, "t shirt": 0},
        "n01440764": 2,
    }
    assert known_classes(["LABEL_0", "LABEL_1"], ["a", "b"]) == {}
    assert known_classes(["crane", "crane"], ["crane"]) == {}  # which of them, nobody knows
