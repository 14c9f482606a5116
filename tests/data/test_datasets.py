"""Crops, rows and what a batch of views holds, whatever the workers, processes and batch size."""

import collections
import itertools
import os
import subprocess
import sys
from pathlib import Path

import accelerate
import datasets
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Image, load_from_disk
from helpers.images import encode, grey, picture, rows, undecoded
from helpers.odd_images import as_array
from helpers.paths import ROOT
from helpers.views import PLAIN, SETTINGS, by_position, loader, photos, views_of
from torch.utils.data import DataLoader

from modeling_deit_distill.data import datasets as datasets_module
from modeling_deit_distill.data.datasets import (
    ViewDataset,
    collate,
    crop_and_resize,
    encoded_row,
)
from modeling_deit_distill.data.decoding import decode_image, decode_pixels
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.data.views import AugmentationSettings, View, ViewSampler, crop_box, draw_uniforms
from modeling_deit_distill.errors import worker_failure

BICUBIC = PIL.Image.Resampling.BICUBIC
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- cropping ---------------------------------------------------------------------------------------------------------


BOXES = [
    (0, 0, 120, 160),
    (7, 11, 100, 90),
    (20, 30, 70, 66),
    (3, 5, 40, 50),
    (50, 60, 32, 32),
    (10, 20, 13, 17),
    (119, 158, 1, 2),
    (60, 60, 1, 1),
    (8, 9, 110, 7),
]


def pillows_crop(levels: np.ndarray, box: tuple[int, int, int, int], side: int) -> np.ndarray:
    """In two steps: Pillow takes the cheaper direction first, and cuts what leaves 0 to 255 between the two."""
    top, left, height, width = box
    crop = PIL.Image.fromarray(levels).crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((side, height), BICUBIC).resize((side, side), BICUBIC)).astype(int)


def test_cropping_and_resizing_is_pillow_s():
    levels = np.random.RandomState(0).randint(0, 256, (120, 160, 3), dtype=np.uint8)
    pixels, worst, shares = torch.from_numpy(levels).permute(2, 0, 1), {}, {}
    for side, box in itertools.product((32, 64, 96), BOXES):
        output = torch.zeros(2, 3, side, side, dtype=torch.uint8)
        crop_and_resize(pixels, box, output[0])
        difference = abs(as_array(output[0]) - pillows_crop(levels, box, side))
        worst[side, box], shares[side, box] = int(difference.max()), float((difference > 1).mean())
        assert not output[1].any(), (side, box)  # the neighbour's slot
    assert max(worst.values()) <= 2, worst
    assert max(shares.values()) < 1e-3, shares


# --- rows -------------------------------------------------------------------------------------------------------------


REARRANGED = {
    "as they are": lambda rows: rows,
    "shuffled": lambda rows: rows.shuffle(seed=1),
    "selected": lambda rows: rows.select([4, 0, 2]),
    "cut": lambda rows: rows.train_test_split(test_size=0.4, seed=0)["test"],
    "put together": lambda rows: datasets.concatenate_datasets([rows.select([5, 1]), rows.shuffle(seed=2), rows]),
}


def test_a_row_is_found_without_formatting(tmp_path):
    plain = rows([0, 1, 2, 0, 1, 2], classes=["a", "b", "c"]).cast_column("image", Image(decode=False))
    plain.to_parquet(tmp_path / "rows.parquet")
    from_files = load_image_data(str(tmp_path / "rows.parquet"), validation_fraction=0.5).train
    rearranged = {name: rearrange(plain) for name, rearrange in REARRANGED.items()} | {"read from files": from_files}
    for name, some in rearranged.items():
        for row in range(len(some)):
            expected = some[row]
            assert encoded_row(some, row) == (expected["image"], expected["label"]), name


def test_what_a_batch_holds(dataset):
    views = views_of(dataset, epoch=2)[6:14]
    batch = collate(dataset.__getitems__(views))
    assert set(batch) == {"pixel_values", "labels", "epoch", "position", "draws", "bad_images"}
    assert batch["pixel_values"].shape == (8, 3, 16, 16) and batch["pixel_values"].dtype == torch.uint8
    assert batch["labels"].shape == (8,) and batch["labels"].dtype == torch.int64
    assert isinstance(batch["epoch"], np.ndarray) and batch["epoch"].tolist() == [2] * 8
    assert isinstance(batch["position"], np.ndarray) and batch["position"].tolist() == list(range(6, 14))
    draws = batch["draws"]
    assert draws.flip.shape == (8,) and draws.operations.shape == draws.arguments.shape == (8, 2)
    assert draws.erased_box.shape == (8, 4) and draws.noise_seed.shape == (8,)
    assert draws.mix_ratio.shape == (4,) and draws.mix_box.shape == (4, 4)
    assert len(dataset) == 48


def test_a_batch_without_mixing():
    draws = ViewDataset(photos(), PLAIN).__getitems__([View(1, 0, 0)])["draws"]
    assert draws.mix_ratio is None and draws.mix_box is None


def test_a_view_is_the_drawn_crop_of_its_image():
    data = undecoded([encode(picture(90, 70), "PNG"), encode(picture(50, 80), "PNG")])
    views = [View(position % 2, 3, position) for position in range(20)]
    batch = ViewDataset(data, PLAIN, seed=7).__getitems__(views)
    uniforms = draw_uniforms(7, 3, range(20))
    assert batch["labels"].tolist() == [view.image for view in views]
    for view, pixels, draws in zip(views, batch["pixel_values"], uniforms, strict=True):
        image = decode_image(data[view.image]["image"])
        top, left, height, width = crop_box(draws, image.height, image.width, PLAIN.random_crop_scale)
        crop = image.crop((left, top, left + width, top + height)).resize((16, 16), BICUBIC)
        np.testing.assert_allclose(as_array(pixels), np.asarray(crop), rtol=0, atol=2)


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 8), (1, 16), (3, 8)])
def test_workers_and_batch_sizes_change_nothing(dataset, expected, num_workers, batch_size):
    assert sorted(expected) == list(range(48))
    batches = list(loader(dataset, batch_size, num_workers))
    assert [len(batch["labels"]) for batch in batches] == [batch_size] * (48 // batch_size)
    assert by_position(batches) == expected


class NoSharedMemory(ViewDataset):
    """Where shared memory is full; forked, a worker has its parent's torch."""

    def __getitems__(self, views):
        def refuse(storage):
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
            )

        torch.Tensor.share_memory_ = refuse
        torch.UntypedStorage._share_fd_cpu_ = torch.UntypedStorage._share_filename_cpu_ = refuse
        return super().__getitems__(views)


@pytest.mark.slow  # torch waits five seconds for such a worker
def test_a_batch_that_cannot_be_handed_over_is_an_error(dataset):
    # In the thread that sends batches it would be lost, and the training would wait for ever.
    full = NoSharedMemory(dataset.rows, SETTINGS)
    settings = {"collate_fn": collate, "num_workers": 1, "multiprocessing_context": "fork", "timeout": 60}
    with pytest.raises(RuntimeError, match=r"unable to allocate shared memory\(shm\)") as caught:
        list(DataLoader(full, 8, sampler=views_of(full), **settings))
    assert "--shm-size" in worker_failure(caught.value)


@pytest.mark.slow
def test_outside_of_a_worker_nothing_is_shared(dataset):
    assert not collate(dataset.__getitems__(views_of(dataset)[:8]))["pixel_values"].is_shared()
    for batch in loader(dataset, 16, num_workers=1):
        assert batch["pixel_values"].is_shared() and batch["pixel_values"].is_contiguous(
            memory_format=torch.channels_last
        )


def test_another_epoch_or_seed_is_another_view(dataset, expected):
    others = by_position(loader(dataset, 16, epoch=0)), by_position(loader(ViewDataset(photos(), SETTINGS, 6), 16))
    for other in others:
        assert sum(other[position][0] == expected[position][0] for position in expected) < 5


def test_the_order_of_pairs_changes_nothing(dataset, expected):
    views = views_of(dataset, epoch=1)
    pairs = [views[start : start + 2] for start in range(0, 48, 2)]
    for batch_size in (2, 12, 48):
        mixed_up = [view for index in torch.randperm(24) for view in pairs[index]]
        batches = [dataset.__getitems__(mixed_up[start : start + batch_size]) for start in range(0, 48, batch_size)]
        assert by_position(batches) == expected, batch_size


def test_the_order_of_views_changes_nothing():
    dataset = ViewDataset(photos(), PLAIN)
    views = views_of(dataset)
    expected = by_position([dataset.__getitems__(views)])
    for batch_size in (1, 5, 48):
        mixed_up = [views[index] for index in torch.randperm(48)]
        batches = [dataset.__getitems__(mixed_up[start : start + batch_size]) for start in range(0, 48, batch_size)]
        assert by_position(batches) == expected, batch_size


@pytest.fixture
def decodes(monkeypatch) -> collections.Counter:
    """How often each image was decoded for training."""
    counts = collections.Counter()

    def counting(image):
        counts[image["bytes"]] += 1
        return decode_pixels(image)

    monkeypatch.setattr("modeling_deit_distill.data.datasets.decode_pixels", counting)
    return counts


def test_an_image_is_decoded_once_for_all_its_views_in_a_batch(decodes):
    dataset = ViewDataset(undecoded([encode(grey(row)) for row in range(48)]), SETTINGS)
    for repeats, batch_size in itertools.product((1, 3, 4), (6, 8, 24, 48)):
        views = views_of(dataset, repeats=repeats)
        for start in range(0, 48, batch_size):
            batch = views[start : start + batch_size]
            decodes.clear()
            dataset.__getitems__(batch)
            assert len(decodes) == sum(decodes.values()) == len({view.image for view in batch})
            assert repeats == 1 or len(decodes) < batch_size


def test_kept_images_are_decoded_once_and_seen_alike(decodes):
    encoded = [b"broken" if row == 5 else encode(grey(row))["bytes"] for row in range(48)]
    rows = undecoded([{"bytes": content, "path": None} for content in encoded])
    dataset, kept = ViewDataset(rows, SETTINGS, seed=5), ViewDataset(rows, SETTINGS, seed=5, keep_decoded=True)
    views = [*views_of(dataset, repeats=1, epoch=0), *views_of(dataset, repeats=1, epoch=1)]
    batches = [views[start : start + 8] for start in range(0, 96, 8)]
    expected = [dataset.__getitems__(batch) for batch in batches]
    decodes.clear()
    for batch, one in zip(batches, expected, strict=True):
        other = kept.__getitems__(batch)
        assert torch.equal(other["pixel_values"], one["pixel_values"])
        assert (other["labels"].tolist(), other["bad_images"]) == (one["labels"].tolist(), one["bad_images"])
    assert set(decodes.values()) == {1}


def test_images_are_kept_while_there_is_room(decodes, monkeypatch, caplog):
    rows = undecoded([encode(grey(row)) for row in range(48)])
    dataset, kept = ViewDataset(rows, SETTINGS), ViewDataset(rows, SETTINGS, keep_decoded=True)
    views = [*views_of(dataset, repeats=1, epoch=0), *views_of(dataset, repeats=1, epoch=1)]
    expected = [dataset.__getitems__(views[start : start + 8])["pixel_values"] for start in range(0, 96, 8)]
    size = ViewDataset(rows, SETTINGS)._decode(0)[0].num_bytes
    monkeypatch.setattr(datasets_module, "spare_memory", lambda: 4 * (10 * size + 1))
    decodes.clear()
    for start, pixels in zip(range(0, 96, 8), expected, strict=True):
        assert torch.equal(kept.__getitems__(views[start : start + 8])["pixel_values"], pixels)
    assert sorted(decodes.values()) == [1] * 10 + [2] * 38
    (said,) = caplog.messages
    assert "10 of 48 decoded images are kept, the others are decoded in every epoch" in said


@pytest.mark.parametrize(("num_processes", "process_index"), [(1, 0), (2, 0), (2, 1)])
def test_skipped_batches_decode_nothing(decodes, num_processes, process_index):
    dataset, batch_size = ViewDataset(photos(bad=()), SETTINGS), 8 // num_processes
    expected = by_position(loader(dataset, 16))
    prepared = prepare_data_loader(
        loader(dataset, batch_size),
        device=torch.device("cpu"),
        num_processes=num_processes,
        process_index=process_index,
    )
    skipped = accelerate.skip_first_batches(prepared, 4)  # of six
    skipped.set_epoch(1)  # in this order, as Trainer does; Accelerate starts at epoch 0 whatever the sampler says
    decodes.clear()
    seen = by_position(skipped)
    rest = views_of(dataset, epoch=1)[32:]
    rest = [view for view in rest if view.position // batch_size % num_processes == process_index]
    assert seen == {view.position: expected[view.position] for view in rest}
    assert set(decodes) == {dataset.rows[view.image]["image"]["bytes"] for view in rest}


# --- memory and processes ---------------------------------------------------------------------------------------------


class Watched(ViewDataset):
    """Tells how much memory the process that made a batch holds."""

    def __getitems__(self, views):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {**super().__getitems__(views), "resident": pages * os.sysconf("SC_PAGE_SIZE")}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_memory_stays_flat(tmp_path, num_workers):
    # Decoded, all images would take 74 MB, of which two epochs see little more than half.
    levels = np.random.RandomState(0).randint(0, 256, (2000, 6, 8, 3), dtype=np.uint8)
    images = [encode(PIL.Image.fromarray(image).resize((128, 96)), "JPEG") for image in levels]
    undecoded(images).save_to_disk(tmp_path)
    dataset = Watched(load_from_disk(tmp_path), AugmentationSettings(image_size=32))
    sampler = ViewSampler(len(dataset), 40)
    batches = DataLoader(
        dataset, 40, sampler=sampler, collate_fn=collate, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    resident = []
    for epoch in range(10):
        sampler.set_epoch(epoch)
        resident.append([batch["resident"] for batch in batches][-1])
    assert resident[9] - resident[1] < 20e6


SCRIPT = """
import sys

import accelerate
import torch
from datasets import load_from_disk
from torch.utils.data import DataLoader

from modeling_deit_distill.data.datasets import ViewDataset, collate
from modeling_deit_distill.script import end_process
from modeling_deit_distill.data.views import AugmentationSettings, ViewSampler

data, output_dir = sys.argv[1:]
dataset = ViewDataset(load_from_disk(data), AugmentationSettings(image_size=16), seed=5)
sampler = ViewSampler(len(dataset), 16, 3, dataset.seed)
sampler.set_epoch(1)
accelerator = accelerate.Accelerator(cpu=True)
loader = accelerator.prepare(DataLoader(dataset, 8, sampler=sampler, collate_fn=collate))
loader.set_epoch(1)
torch.save(list(loader), f"{output_dir}/{accelerator.process_index} of {accelerator.num_processes}.pt")
end_process()
"""


@pytest.mark.slow
def test_two_processes_see_together_what_one_sees(tmp_path, expected):
    (tmp_path / "script.py").write_text(SCRIPT)
    photos().save_to_disk(tmp_path / "data")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(tmp_path / "script.py"), str(tmp_path / "data"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    batches = [torch.load(tmp_path / f"{rank} of 2.pt", weights_only=False) for rank in range(2)]
    assert [[len(batch["labels"]) for batch in own] for own in batches] == [[8, 8, 8]] * 2
    assert by_position(batches[0] + batches[1]) == expected
