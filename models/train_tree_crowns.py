"""Trains `tree-crowns.onnx` from the two Yellowstone pictures of the deepforest 2.1.0 wheel; no part of the install.

It needs torch 2.13, onnx and Pillow in an environment of their own, and the wheel beside it:

    pip download --no-deps deepforest==2.1.0
    pip install torch==2.13.0 onnx pillow
    python models/train_tree_crowns.py deepforest-2.1.0-py3-none-any.whl tree-crowns.onnx

A quarter of an hour on one core. The south of the small picture is kept aside: the thresholds with the best F1 there
go into the contract that is written for models.yaml. Neither OSBS_029 nor SOAP_061, which are for
testing, is read by anything here.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import time
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

DATA = {  # sha256 of the files in the wheel
    "2019_YELL_2_528000_4978000_image_crop2.png": "a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767",
    "2019_YELL_2_528000_4978000_image_crop2.xml": "bd431af6a5086d721eb731b22f5ea28cd8a8eab06883efc1c665391acbc68e11",
    "2019_YELL_2_541000_4977000_image_crop.png": "178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131",
    "2019_YELL_2_541000_4977000_image_crop.xml": "cefe4b96888bacbf8af1674f000082e549aa707aa6590d545effb23e43f26631",
}
SIDE, STRIDE = 256, 4  # pixels of a window; of a cell
CELLS = SIDE // STRIDE
BATCH, RATE, SEED = 4, 2e-3, 7
IOU = 0.4
KEPT_ASIDE = 650  # rows of the small picture from here on


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = conv(width, width), conv(width, width, active=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.two(self.one(x)))


class Crowns(nn.Module):
    """A small hour-glass: for each cell of 4 x 4 pixels, whether a crown's middle is there, and how large it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 24, stride=2), conv(24, 32, stride=2), Block(32))
        self.eighth = nn.Sequential(conv(32, 56, stride=2), Block(56))
        self.sixteenth = nn.Sequential(conv(56, 88, stride=2), Block(88), Block(88))
        self.up8, self.up4 = conv(88 + 56, 56), conv(56 + 32, 32)
        self.middle = nn.Sequential(conv(32, 32), nn.Conv2d(32, 1, 1))
        self.shape = nn.Sequential(conv(32, 32), nn.Conv2d(32, 4, 1))
        nn.init.constant_(self.middle[1].bias, -3.0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        four = self.stem(x)
        eight = self.eighth(four)
        x = self.sixteenth(eight)
        x = self.up8(torch.cat([functional.interpolate(x, scale_factor=2.0), eight], 1))
        x = self.up4(torch.cat([functional.interpolate(x, scale_factor=2.0), four], 1))
        return self.middle(x), self.shape(x)


def conv(given: int, width: int, stride: int = 1, active: bool = True) -> nn.Sequential:
    """3 x 3, normalised over the batch."""
    layers: list[nn.Module] = [nn.Conv2d(given, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers, *([nn.ReLU()] if active else []))


class Detector(nn.Module):
    """What is exported: images [N, 256, 256, 3] of bytes to boxes [N, 4096, 4] and scores [N, 4096]."""

    def __init__(self, crowns: Crowns) -> None:
        super().__init__()
        self.crowns = crowns
        y, x = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
        self.register_buffer("cells", torch.stack([x, y]).float() + 0.5)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        middle, shape = self.crowns(images.permute(0, 3, 1, 2).float() / 127.5 - 1.0)
        score = torch.sigmoid(middle)
        peak = functional.max_pool2d(score, 3, 1, 1) <= score  # of neighbours only the best
        score = score * peak.float()
        at = (self.cells + shape[:, :2]) * STRIDE
        half = torch.exp(shape[:, 2:].clamp(-3.0, 3.0)) * 20.0
        boxes = torch.cat([at - half, at + half], 1)
        return boxes.flatten(2).permute(0, 2, 1), score.flatten(1)


def read(wheel: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and boxes, each file checked by its hash."""
    files = {}
    with zipfile.ZipFile(wheel) as archive:
        for name, sha256 in DATA.items():
            files[name] = archive.read(f"deepforest/data/{name}")
            if hashlib.sha256(files[name]).hexdigest() != sha256:
                raise SystemExit(f"{name} is not the file that this was written for")
    found = []
    for name in DATA:
        if name.endswith(".png"):
            picture = np.array(Image.open(io.BytesIO(files[name])).convert("RGB"))
            root = ElementTree.fromstring(files[name.replace(".png", ".xml")])
            boxes = [
                [float(box.find(key).text) for key in ("xmin", "ymin", "xmax", "ymax")] for box in root.iter("bndbox")
            ]
            found.append((picture, np.array(boxes)))
    return found


def part(picture: np.ndarray, boxes: np.ndarray, x1: int, y1: int, x2: int, y2: int) -> tuple[np.ndarray, np.ndarray]:
    """A rectangle of a picture, with the boxes whose middle it holds."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((middle >= (x1, y1)) & (middle < (x2, y2))).all(1)
    moved = np.clip(boxes[inside] - (x1, y1, x1, y1), 0, (x2 - x1, y2 - y1) * 2)
    return picture[y1:y2, x1:x2], moved


def sample(rng: np.random.Generator, scenes: list) -> tuple[np.ndarray, np.ndarray]:
    """A window somewhere, turned, scaled and recoloured: other woods have other light and other greens."""
    areas = np.array([picture.shape[0] * picture.shape[1] for picture, _ in scenes], float)
    for _ in range(4):  # most windows should have some trees
        picture, boxes = scenes[rng.choice(len(scenes), p=areas / areas.sum())]
        side = int(SIDE / math.exp(rng.uniform(-0.35, 0.45)))
        y, x = rng.integers(0, picture.shape[0] - side), rng.integers(0, picture.shape[1] - side)
        window, found = part(picture, boxes, x, y, x + side, y + side)
        if len(found) >= 3:
            break
    image = Image.fromarray(window).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels, found = np.array(image, np.float32) / 255, found * SIDE / side
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
        found = np.stack([SIDE - found[:, 2], found[:, 1], SIDE - found[:, 0], found[:, 3]], 1)
    for _ in range(rng.integers(4)):
        pixels = np.rot90(pixels)
        found = np.stack([found[:, 1], SIDE - found[:, 2], found[:, 3], SIDE - found[:, 0]], 1)
    return recolour(rng, pixels), found


def recolour(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Other light, other haze, other camera."""
    if rng.random() < 0.15:
        pixels = np.repeat(pixels.mean(2, keepdims=True), 3, 2)
    else:
        grey = pixels.mean(2, keepdims=True)
        pixels = grey + (pixels - grey) * rng.uniform(0.4, 1.5)
    pixels = pixels.clip(0, 1) ** np.exp(rng.uniform(-0.5, 0.4))
    pixels = (pixels - 0.5) * rng.uniform(0.6, 1.4) + 0.5 + rng.uniform(-0.15, 0.25)
    pixels = pixels * rng.uniform(0.82, 1.18, 3) + rng.normal(0, rng.uniform(0, 0.04), pixels.shape)
    if rng.random() < 0.3:
        soft = (pixels + np.roll(pixels, 1, 0) + np.roll(pixels, 1, 1) + np.roll(pixels, (1, 1), (0, 1))) / 4
        pixels = soft
    return pixels.clip(0, 1).astype(np.float32)


def target(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each cell: how near a crown's middle it is, the shape of that crown, and how much the shape counts."""
    heat = np.zeros((CELLS, CELLS), np.float32)
    shape, weight = np.zeros((4, CELLS, CELLS), np.float32), np.zeros((CELLS, CELLS), np.float32)
    y, x = np.mgrid[:CELLS, :CELLS] + 0.5
    for x1, y1, x2, y2 in boxes[np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))]:
        wide, high = max(x2 - x1, 4.0), max(y2 - y1, 4.0)
        cx, cy = (x1 + x2) / 2 / STRIDE, (y1 + y2) / 2 / STRIDE
        sx, sy = max(wide / STRIDE / 7, 0.7), max(high / STRIDE / 7, 0.7)
        near = np.exp(-((x - cx) ** 2) / (2 * sx**2) - (y - cy) ** 2 / (2 * sy**2)).astype(np.float32)
        column, row = min(int(cx), CELLS - 1), min(int(cy), CELLS - 1)
        near[row, column] = 1
        heat = np.maximum(heat, near)
        mine = near > 0.5
        shape[0][mine], shape[1][mine] = (cx - x)[mine], (cy - y)[mine]
        shape[2][mine], shape[3][mine] = math.log(wide / 40), math.log(high / 40)
        weight[mine] = near[mine]
    return heat, shape, weight


def loss_of(middle: torch.Tensor, shape: torch.Tensor, heat, wanted, weight) -> torch.Tensor:
    """Focal for the middles, absolute for the shapes."""
    score = torch.sigmoid(middle[:, 0]).clamp(1e-4, 1 - 1e-4)
    is_middle = heat == 1
    hit = -((1 - score) ** 2) * torch.log(score) * is_middle
    miss = -((1 - heat) ** 4) * score**2 * torch.log(1 - score) * ~is_middle
    count = is_middle.sum().clamp(min=1)
    off = ((shape - wanted).abs() * torch.tensor([0.3, 0.3, 1.0, 1.0])[:, None, None]).sum(1)
    return (hit + miss).sum() / count + (off * weight).sum() / weight.sum().clamp(min=1)


def train(scenes: list, steps: int) -> Crowns:
    """From nothing, the same each time on the same machine."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    model = Crowns().train()
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.15)
    began, total = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        windows = [sample(rng, scenes) for _ in range(BATCH)]
        pixels = torch.from_numpy(np.stack([w.transpose(2, 0, 1) for w, _ in windows])) * 2 - 1
        heat, wanted, weight = (
            torch.from_numpy(np.stack(each)) for each in zip(*[target(b) for _, b in windows], strict=True)
        )
        loss = loss_of(*model(pixels), heat, wanted, weight)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        total += loss.item()
        if step % 50 == 0:
            print(f"step {step}: loss {total / 50:.3f}, {time.monotonic() - began:.0f} s", flush=True)
            total = 0.0
    return model.eval()


def detect(detector: Detector, picture: np.ndarray, margin: int = 48) -> np.ndarray:
    """Boxes with their scores, by windows that overlap."""
    found, core = [], SIDE - 2 * margin
    padded = np.pad(picture, ((margin, SIDE), (margin, SIDE), (0, 0)))
    for y in range(0, picture.shape[0], core):
        for x in range(0, picture.shape[1], core):
            with torch.no_grad():
                boxes, scores = detector(torch.from_numpy(padded[None, y : y + SIDE, x : x + SIDE].copy()))
            boxes, scores = boxes[0].numpy(), scores[0].numpy()
            at = (boxes[:, :2] + boxes[:, 2:]) / 2 - margin
            mine = (scores > 0.05) & (at >= 0).all(1) & (at < core).all(1)
            offset = np.array([x - margin, y - margin] * 2)
            found.append(np.concatenate([boxes[mine] + offset, scores[mine, None]], 1))
    boxes = np.concatenate(found)
    limit = picture.shape[1::-1] * 2
    boxes[:, :4] = np.clip(boxes[:, :4], 0, limit)
    return boxes[np.argsort(-boxes[:, 4])]


def overlaps(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a box with others."""
    shared = np.prod(np.clip(np.minimum(one[2:4], others[:, 2:4]) - np.maximum(one[:2], others[:, :2]), 0, None), 1)
    area = lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])  # noqa: E731
    return shared / (area(one) + area(others) - shared)


def suppress(boxes: np.ndarray, most: float) -> np.ndarray:
    """Best first; what overlaps a better one too much is the same crown."""
    kept: list[np.ndarray] = []
    for box in boxes:
        if not kept or overlaps(box, np.array(kept)).max() <= most:
            kept.append(box)
    return np.array(kept).reshape(-1, 5)


def judge(found: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 at IoU 0.4, one match for each."""
    free, hits = np.ones(len(truth), bool), 0
    for box in found:
        fits = overlaps(box, truth) * free
        if len(fits) and fits.max() >= IOU:
            free[fits.argmax()] = False
            hits += 1
    precision, recall = hits / max(len(found), 1), hits / max(len(truth), 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


def thresholds(detector: Detector, picture: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The thresholds with the best F1 on woods that were kept aside; what each does is told."""
    found, told = detect(detector, picture), {}
    for most in (0.2, 0.3, 0.4, 0.5):
        for least in (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4):
            precision, recall, f1 = judge(suppress(found[found[:, 4] > least], most), truth)
            print(f"overlap {most}, score {least}: P {precision:.2f} R {recall:.2f} F1 {f1:.3f}")
            told[most, least] = f1
    overlap, threshold = max(told, key=lambda pair: told[pair])
    return {"overlap": overlap, "threshold": threshold}


CONTRACT = {
    "kind": "detection",
    "classes": ["tree-crown"],
    "bands": ["red", "green", "blue"],
    "size": SIDE,
    "margin": 48,
    "layout": "nhwc",
    "pixel": [0.05, 0.2],
}


def entry(file: Path, chosen: dict[str, float]) -> str:
    """What models.yaml says of the file; JSON is YAML."""
    said = {
        "title": "Tree crowns from above, a small detector for pictures of 0.1 m",
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
        "source": "Trained by models/train_tree_crowns.py on two pictures of deepforest 2.1.0 (MIT, NEON survey)",
        "contract": CONTRACT | chosen,
    }
    return json.dumps({"tree-crowns": said}, indent=2)


def main() -> None:
    """Train, tell how it does on what was kept aside, export, and write models.yaml beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1800)
    asked = parser.parse_args()
    large, small = read(asked.wheel)
    torch.set_num_threads(1)
    detector = Detector(train([large, part(*small, 0, 0, 1249, KEPT_ASIDE)], asked.steps)).eval()
    chosen = thresholds(detector, *part(*small, 0, KEPT_ASIDE, 1249, 1035))
    torch.onnx.export(
        detector, (torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8),), str(asked.out), opset_version=17, dynamo=False,
        input_names=["images"], output_names=["boxes", "scores"],
        dynamic_axes={name: {0: "N"} for name in ("images", "boxes", "scores")},
    )  # fmt: skip
    asked.out.with_name("models.yaml").write_text(entry(asked.out, chosen))
    print(f"{asked.out}; `python -m bench.features --only crowns --models {asked.out.parent}` judges it")


if __name__ == "__main__":
    main()
