"""Views of streamed data."""

import functools
import itertools

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from helpers.images import encode, grey, level, rows
from helpers.refusals import complaint, refusal
from helpers.shards import write_shard
from helpers.views import PLAIN, SETTINGS, by_position, views_of
from torch.utils.data import DataLoader

from modeling_deit_distill import InputError
from modeling_deit_distill.data.bad_images import BadImages
from modeling_deit_distill.data.datasets import (
    StreamingViewDataset,
    collate,
)
from modeling_deit_distill.data.sources import ImageData, load_image_data

NAMES = [f"class {index}" for index in range(24)]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """`stream(bad={3: b""})`: four parquet files of six images each as a stream; image i is of level i and label i."""

    def make(bad=None, path="{}.png") -> ImageData:
        folder = tmp_path_factory.mktemp("stream") / "data"
        encoded = [encode(grey(row))["bytes"] for row in range(24)]
        for row, broken in (bad or {}).items():
            encoded[row] = broken
        images = [{"bytes": content, "path": path.format(row)} for row, content in enumerate(encoded)]
        features = Features({"image": Image(decode=False), "label": ClassLabel(names=NAMES)})
        data = Dataset.from_dict({"image": images, "label": list(range(24))}, features=features)
        for shard in range(4):
            data.select(range(6 * shard, 6 * shard + 6)).to_parquet(folder / f"train-{shard}-of-4.parquet")
        data.select([0, 2]).to_parquet(folder / "test-0-of-1.parquet")
        return load_image_data(str(folder), streaming=True)

    good = functools.cache(make)  # without bad images it is the same for every test
    return lambda *args, **kwargs: make(*args, **kwargs) if args or kwargs else good()


def some(dataset: StreamingViewDataset, batches: int, num_workers: int = 0) -> list[dict]:
    loader = DataLoader(dataset, batch_size=None, collate_fn=collate, num_workers=num_workers)
    return list(itertools.islice(loader, batches))


def test_a_stream_is_described_as_stored_data_is(stream):
    data = stream()
    assert data.class_names == NAMES and "test" in data.validation_source
    assert [level(row) for row in data.validation] == data.validation["label"][:] == [0, 2]


def test_batches_of_a_stream_are_those_of_stored_data(stream, dataset):
    batches = some(StreamingViewDataset(stream().train, SETTINGS, batch_size=12), 4)
    stored = dataset.__getitems__(views_of(dataset)[:12])
    for number, batch in enumerate(batches):
        assert {key: type(value) for key, value in batch.items()} == {key: type(value) for key, value in stored.items()}
        assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_values"].shape == (12, 3, 16, 16)
        assert batch["position"].tolist() == list(range(12 * number, 12 * number + 12))
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == batch["labels"].tolist()
    labels = torch.cat([batch["labels"] for batch in batches]).reshape(-1, 3, 2)  # (pairs, repeats, images)
    assert torch.equal(labels, labels[:, :1].expand_as(labels))
    assert len(labels[:, 0].unique()) == 16


def test_a_stream_of_the_same_seed_is_the_same(stream):
    data = stream().train
    first, again = (by_position(some(StreamingViewDataset(data, SETTINGS, 8, seed=1), 12)) for _ in range(2))
    assert first == again
    other = by_position(some(StreamingViewDataset(data, SETTINGS, 8, seed=2), 12))
    assert [view[1] for view in other.values()] != [view[1] for view in first.values()]


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 2), (2, 1), (3, 0)])
def test_processes_and_workers_share_a_stream(stream, num_processes, num_workers):
    data = stream().train
    shares = []
    for rank in range(num_processes):
        share = StreamingViewDataset(data, SETTINGS, 2, repeats=1, rank=rank, num_processes=num_processes)
        shares += some(share, 12 // num_processes, num_workers)
    assert sorted(label for batch in shares for label in batch["labels"].tolist()) == list(range(24))  # one pass
    assert len(by_position(shares)) == 24  # no position twice


@pytest.mark.parametrize("num_workers", [2, 3])
def test_each_worker_gets_a_shard_of_a_webdataset(tmp_path, num_workers):
    # datasets 5.0.0 gives all of them to one worker (huggingface/datasets issue 8669).
    for number in range(6):
        levels = range(4 * number, 4 * number + 4)
        write_shard(tmp_path / f"train-{number}.tar", levels, lambda level: {"cls": b"%d" % level})
    write_shard(tmp_path / "test.tar", range(24), lambda level: {"cls": b"%d" % level})
    dataset = StreamingViewDataset(load_image_data(str(tmp_path), streaming=True).train, PLAIN, 2, repeats=1)
    batches = some(dataset, 12, num_workers)
    assert sorted(label for batch in batches for label in batch["labels"].tolist()) == list(range(24))
    lanes = [batch["position"][0] // 2 % num_workers for batch in batches]
    assert all(lanes.count(lane) == 12 // num_workers for lane in range(num_workers))


def test_a_stream_has_no_end(stream):
    labels = torch.cat([batch["labels"] for batch in some(StreamingViewDataset(stream().train, SETTINGS, 8, 1), 9)])
    assert [sorted(one) for one in labels.reshape(3, 24).tolist()] == [list(range(24))] * 3


def test_each_pass_of_a_stream_has_its_own_order(stream):
    first, second = some(StreamingViewDataset(stream().train, SETTINGS, 24, repeats=1), 2)
    assert not torch.equal(first["labels"], second["labels"])


def test_bad_images_of_a_stream_are_left_out_and_named(stream, warnings):
    batches = some(StreamingViewDataset(stream(bad={3: b"", 8: b"text"}).train, SETTINGS, 2, repeats=1), 11)
    assert sorted(label for batch in batches for label in batch["labels"].tolist()) == sorted({*range(24)} - {3, 8})
    bad_images = BadImages(None)
    for batch in batches:
        bad_images.note(batch["bad_images"], len(batch["labels"]))
    assert sorted(message.split(" is a bad image: ")[0] for message in warnings()) == ["3.png", "8.png"]
    assert any("the file is empty" in message for message in warnings())


def test_bad_images_of_a_stream_count_even_without_a_file(stream):
    for other in (b"text", b""):  # of another size than the first, and of the same
        data = stream(bad={3: b"", 8: other}, path="").train
        data = data.map(lambda row: {"label": 1}, features=data.features)
        (batch,) = some(StreamingViewDataset(data, SETTINGS, 22, repeats=1), 1)
        bad_images = BadImages(None)
        bad_images.note(batch["bad_images"])
        assert len(bad_images.seen) == 2, other


def test_a_stream_of_bad_images_is_refused(stream):
    message = "share 0 of the stream has no two readable images; .*.png is a bad image: the file is empty; repair the"
    with pytest.raises(InputError, match=message):
        some(StreamingViewDataset(stream(bad=dict.fromkeys(range(24), b"")).train, SETTINGS, 2), 1)


def test_a_stream_is_judged_after_a_thousand_images():
    bad_images = BadImages(None, max_fraction=0.01)
    bad_images.note([str(number) for number in range(10)], 20)
    assert "max_bad_image_fraction" in complaint(bad_images, ["one more"])
    bad_images.note([], 2000)
    bad_images.note([str(number) for number in range(19)])  # with the one more, 20 of 2020


def test_views_of_a_stream_are_mixed_in_pairs(stream):
    data = stream().train
    for batch_size in (1, 7):
        with pytest.raises(InputError, match=f"per_device_train_batch_size is {batch_size}, which is odd"):
            StreamingViewDataset(data, SETTINGS, batch_size)
        assert some(StreamingViewDataset(data, PLAIN, batch_size), 1)[0]["labels"].shape == (batch_size,)


def test_what_cannot_be_streamed(tmp_path):
    assert "streaming" in refusal("digits", streaming=True)
    rows([0, 1], ["a", "b"]).to_parquet(tmp_path / "data" / "train.parquet")
    assert "--validation_split" in refusal(str(tmp_path / "data"), streaming=True)


def test_a_stream_of_saved_rows(saved):
    data = load_image_data(saved(rows([0, 1], ["a", "b"]), test=rows([0, 1], ["a", "b"])), streaming=True)
    assert some(StreamingViewDataset(data.train, SETTINGS, 4), 1)[0]["labels"].shape == (4,)


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        ([[0, 1], [1]], [[0, 1], [1]], "label"),  # several labels for each image
        ([{"a": 0}, {"a": 1}], [{"a": 0}, {"a": 1}], "label"),
        ([0, None], [0, 1], "the stream has an image without a label"),
        (["a", None], ["a", "b"], "the stream has an image without a label"),
        ([0, 1], [0, None], "split 'validation' has images without a label"),
        (["a", "b"], ["a", None], "split 'validation' has images without a label"),
    ],
)
def test_labels_that_are_not_one_for_each_image_are_one_line(tmp_path, train, validation, words):
    for split, labels in (("train", train), ("validation", validation)):
        rows([0, 1]).remove_columns("label").add_column("label", labels).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match=words) as caught:
        some(StreamingViewDataset(load_image_data(str(tmp_path), streaming=True).train, SETTINGS, 2), 2)
    assert "\n" not in str(caught.value)
