"""How fast training images are prepared: our data plane against timm's transform chain, on the same real JPEGs.

    python examples/benchmarks/data_pipeline.py DATASET --against timm [--json FILE]

DATASET is a folder of images (one folder per class) or of parquet files. Both chains run in one process, one thread,
alternating; the figures are medians. timm's chain is its own `create_transform` for DeiT's recipe: it decodes, crops,
flips, applies RandAugment, normalises and erases, sample by sample, to a float tensor; its batch Mixup is not counted,
while ours ("ready") includes mixing. timm has no uint8 batch, so both of our stages are held against its whole chain.
timm's samples go into one preallocated batch, our batches are made anew. Its posterize fails now and then on new
Pillow (it asks for 0 bits); here alone it is given one.

    python examples/benchmarks/data_pipeline.py DATASET --large [--json FILE]

measures instead what `scaled_decoding` brings for photographs of 12 megapixels: uint8 views with and without it, and
how near the pixels are. The photographs are those of DATASET, enlarged to 4000 × 3000 with detail that enlarging cannot
give: noise of `--detail` levels at four scales. It decides how many bytes a file has, and so how long its decoding
takes.
"""

import argparse
import dataclasses
import io
import json
import random
import statistics
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Features, Image, Value
from timm.data import create_transform
from timm.data.auto_augment import NAME_TO_OP

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification
from modeling_deit_distill.augmentation.augment import augment
from modeling_deit_distill.data.datasets import DecodedImage, ViewDataset, collate, crop_and_resize
from modeling_deit_distill.data.decoding import decode_image, decode_pixels
from modeling_deit_distill.data.scaled import factor_of_view, scaled_box
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.data.views import AugmentationSettings, ViewSampler, crop_box, draw_uniforms
from modeling_deit_distill.script import run_script

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224
LARGE, LARGE_ROUNDS = (4000, 3000), 5


def main(arguments: list[str]):
    PIL.Image.preinit()
    options = parse_options(arguments)
    torch.set_num_threads(1)
    name = "train_dir" if any(Path(options.dataset).glob("*/*.[jJ]*")) else "dataset_name"
    # None is held out: a sample may have one image a class.
    rows = load_image_data(**{name: options.dataset}, validation_split="train").train
    if options.large:
        measure_large(rows, options)
        return
    chains = {"timm": timm_chain(rows, options.views)}
    for repeats in (3, 1):
        chains[f"uint8_repeats{repeats}"] = our_chain(rows, options, repeats, ready=False)
        chains[f"ready_repeats{repeats}"] = our_chain(rows, options, repeats, ready=True)
    rates = alternate(chains, options.views, options.rounds)
    ratios = {name: rates[name] / rates["timm"] for name in chains if name != "timm"}
    loaders = {name: loader(rows, options, name) for name in ("ours", "timm")}
    loader_rates = alternate(loaders, options.views, options.rounds)
    ratios["loader"] = loader_rates["ours"] / loader_rates["timm"]
    if torch.cuda.is_available():
        ratios["gpu_share_of_step"] = gpu_share_of_step(rows)
    for name, rate in {
        **rates,
        **{f"loader, {k}, {options.workers} workers": v for k, v in loader_rates.items()},
    }.items():
        print(f"{name:28} {rate:8.0f} views/s")
    print(json.dumps({name: round(ratio, 2) for name, ratio in ratios.items()}))
    if options.json:
        Path(options.json).write_text(json.dumps({"rates": rates, "loader": loader_rates, "ratios": ratios}, indent=2))


def parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="folder of images, one folder per class, or of parquet files")
    parser.add_argument("--against", choices=["timm"], default="timm")
    parser.add_argument("--views", type=int, default=192, help="views in a measurement")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each chain, alternating")
    parser.add_argument("--batch_size", type=int, default=96)
    parser.add_argument("--workers", type=int, default=2, help="workers of the DataLoader")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--large", action="store_true", help="photographs of 12 megapixels, scaled and whole")
    parser.add_argument("--photographs", type=int, default=6, help="how many, with --large")
    parser.add_argument("--detail", type=float, nargs="+", default=[0, 3], help="levels of noise, with --large")
    return parser.parse_args(arguments)


def measure_large(rows, options):
    """What `scaled_decoding` brings, for each amount of detail, and for all together."""
    scaled = AugmentationSettings(SIZE, scaled_decoding=True)
    figures, ratios = {}, {}
    for detail in options.detail:
        photographs = enlarged(rows, options.photographs, detail)
        megabytes = sum(len(image["bytes"]) for image in photographs["image"]) / len(photographs) / 1e6
        mean, largest = closeness(photographs, scaled)
        figures[f"detail {detail:g}"] = {"megabytes": megabytes, "mean_difference": mean, "largest_difference": largest}
        print(
            f"detail {detail:g}: {megabytes:.1f} MB a file; difference {mean:.2f} levels on average, {largest} at most"
        )
        for repeats in (3, 1):
            chains = {name: large_chain(photographs, scaled, name == "scaled", repeats) for name in ("whole", "scaled")}
            rates = alternate(chains, repeats * len(photographs), LARGE_ROUNDS)
            ratios[f"large_repeats{repeats}_detail{detail:g}"] = rates["scaled"] / rates["whole"]
            figures[f"detail {detail:g}"][f"rates_repeats{repeats}"] = rates
            print(f"  repeats {repeats}: whole {rates['whole']:.1f}, scaled {rates['scaled']:.1f} views/s")
    print(json.dumps({name: round(ratio, 2) for name, ratio in ratios.items()}))
    if options.json:
        Path(options.json).write_text(json.dumps({"large": figures, "ratios": ratios}, indent=2))


def enlarged(rows, number: int, detail: float) -> Dataset:
    """Photographs of 12 megapixels, with noise at four scales, in quality 90."""
    generator, images = np.random.default_rng(0), []
    for row in np.linspace(0, len(rows) - 1, number).astype(int).tolist():
        photograph = decode_image(rows[row]["image"])
        width, height = LARGE if photograph.width >= photograph.height else LARGE[::-1]
        levels = np.asarray(photograph.resize((width, height), PIL.Image.Resampling.BICUBIC)).astype(np.float32)
        for scale in (1, 2, 4, 8):
            noise = generator.normal(0, detail, (height // scale, width // scale)).astype(np.float32)
            noise = PIL.Image.fromarray(noise).resize((width, height), PIL.Image.Resampling.BICUBIC)
            levels += np.asarray(noise)[..., None]
        buffer = io.BytesIO()
        PIL.Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        images.append({"bytes": buffer.getvalue(), "path": None})
    columns = {"image": images, "label": [0] * len(images)}
    return Dataset.from_dict(columns, features=Features({"image": Image(decode=False), "label": Value("int64")}))


def closeness(photographs: Dataset, settings: AugmentationSettings, views: int = 6) -> tuple[float, int]:
    """Mean and largest difference, in levels, between views of scaled and of whole images, of the same boxes."""
    differences = []
    for place, row in enumerate(photographs):
        image, whole = DecodedImage(row["image"], settings), decode_pixels(row["image"])
        for uniforms in draw_uniforms(0, 0, range(place * views, (place + 1) * views)):
            box = crop_box(uniforms, image.height, image.width, settings.random_crop_scale)
            factor = factor_of_view(box, SIZE, image.factor)
            smaller = scaled_box(box, factor, image.height // factor, image.width // factor)
            shown, expected = torch.empty(2, 3, SIZE, SIZE, dtype=torch.uint8)
            image.crop(box, shown)
            crop_and_resize(whole, tuple(factor * length for length in smaller), expected)
            differences.append((shown.int() - expected.int()).abs())
    differences = torch.stack(differences)
    return differences.float().mean().item(), int(differences.max())


def large_chain(photographs: Dataset, settings: AugmentationSettings, is_scaled: bool, repeats: int):
    """Each photograph is decoded once, for `repeats` views."""
    dataset = ViewDataset(photographs, dataclasses.replace(settings, scaled_decoding=is_scaled))
    sampler = ViewSampler(len(photographs), len(photographs), repeats)

    def run():
        for _ in range(repeats):
            sampler.set_epoch(sampler.epoch + 1)
            dataset.__getitems__(list(sampler))

    return run


class TimmDataset(torch.utils.data.Dataset):
    """timm's recipe for DeiT, sample by sample."""

    def __init__(self, rows):
        self.rows = rows
        patch_posterize()
        self.transform = create_transform(
            SIZE,
            is_training=True,
            auto_augment="rand-m9-mstd0.5-inc1",
            interpolation="bicubic",
            re_prob=0.25,
            re_mode="pixel",
            re_count=1,
        )

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.transform(decode_image(self.rows[index % len(self.rows)]["image"])), 0


def patch_posterize():
    """Pillow 13 refuses 0 bits, which timm's strongest posterize asks for."""
    original = NAME_TO_OP["PosterizeIncreasing"]
    NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **kwargs: original(image, max(bits, 1), **kwargs)


def timm_chain(rows, num_views: int):
    dataset, draws = TimmDataset(rows), random.Random(0)
    batch = torch.empty(num_views, 3, SIZE, SIZE)

    def run():
        for slot in range(num_views):
            batch[slot] = dataset[draws.randrange(len(rows))][0]

    return run


def our_chain(rows, options, repeats: int, ready: bool):
    settings = AugmentationSettings(SIZE)
    dataset = ViewDataset(rows, settings)
    sampler = ViewSampler(max(len(rows), 10 * options.views), options.batch_size, repeats)
    output = torch.empty(options.batch_size, 3, SIZE, SIZE)

    def run():
        sampler.set_epoch(sampler.epoch + 1)
        views = iter(sampler)
        for _ in range(options.views // options.batch_size):
            chosen = [next(views) for _ in range(options.batch_size)]
            batch = dataset.__getitems__([view._replace(image=view.image % len(rows)) for view in chosen])
            if ready:
                augment(batch["pixel_values"], batch["draws"], MEAN, STD, out=output)

    return run


def loader(rows, options, whose: str):
    """A real DataLoader: ours yields uint8 batches, timm's normalised ones."""
    many = rows.select([index % len(rows) for index in range(options.views)])
    settings = {"batch_size": options.batch_size, "num_workers": options.workers, "persistent_workers": True}
    if whose == "timm":
        loaded = torch.utils.data.DataLoader(TimmDataset(many), shuffle=True, **settings)
    else:
        dataset = ViewDataset(many, AugmentationSettings(SIZE))
        sampler = ViewSampler(len(many), options.batch_size, repeats=3)
        loaded = torch.utils.data.DataLoader(dataset, sampler=sampler, collate_fn=collate, **settings)
    return lambda: sum(1 for _ in loaded)


def alternate(chains: dict, num_views: int, rounds: int) -> dict[str, float]:
    """Views per second of each chain, the median over rounds; the first round warms up."""
    seconds = {name: [] for name in chains}
    for round_number in range(rounds + 1):
        for name, run in chains.items():
            start = time.perf_counter()
            run()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return {name: num_views / statistics.median(times) for name, times in seconds.items()}


def gpu_share_of_step(rows, batch_size: int = 256) -> float:
    """The device part's time as a share of a DeiT-S training step in bf16, both on the GPU."""
    sampler = ViewSampler(max(len(rows), batch_size), batch_size)
    views = [view._replace(image=view.image % len(rows)) for view in sampler][:batch_size]
    batch = ViewDataset(rows, AugmentationSettings(SIZE)).__getitems__(views)
    pixels, labels = batch["pixel_values"].cuda(), torch.zeros(batch_size, dtype=torch.long, device="cuda")
    config = DeiTDistillConfig.from_size("small", num_labels=1000)
    model = DeiTDistillForImageClassification(config).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ready = augment(pixels, batch["draws"], MEAN, STD)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(ready, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def timed(run):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    times = [(timed(lambda: augment(pixels, batch["draws"], MEAN, STD)), timed(step)) for _ in range(25)][5:]
    return statistics.median(part for part, _ in times) / statistics.median(whole for _, whole in times)


if __name__ == "__main__":
    run_script(main)
