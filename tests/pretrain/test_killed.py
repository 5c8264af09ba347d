"""A run killed at random moments and resumed ends with the very weights of one that was never killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

# One process imports torch, computes nothing, and forks: one run to its end, then runs that are killed and resumed.
SCRIPT = """
import hashlib, json, os, random, shutil, signal, sys, time
import torch
from context_pred.pretrain import run
from context_pred.training.checkpoints import read_checkpoint

images, folder, settings, kills = json.loads(sys.argv[1])

def fork(out):
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            sys.stdout = sys.stderr
            run(images, "resnet18_1xb64-coslr-300k", out=out, settings=settings, workers=1, progress=False, resume=True)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child

def digest(out):
    state = read_checkpoint(__import__("pathlib").Path(out) / "checkpoints" / "step-00000008.pt")
    found = hashlib.sha256()
    for part in (state["model"], *(slots for slots in state["optimizer"]["state"].values())):
        for value in part.values():
            found.update(torch.as_tensor(value).numpy().tobytes())
    return found.hexdigest()

begun = time.perf_counter()
assert os.waitpid(fork(folder + "/whole"), 0)[1] == 0
whole = time.perf_counter() - begun
chance = random.Random(0)
ends, killed = [], 0
while killed < kills:
    out = f"{folder}/run{len(ends)}"
    while True:
        child = fork(out)
        deadline = time.perf_counter() + chance.uniform(0.1, 1.1) * whole
        status = None
        while time.perf_counter() < deadline and status is None:
            pid, code = os.waitpid(child, os.WNOHANG)
            status = code if pid else None
            time.sleep(0.01)
        if status is not None:
            assert status == 0, status
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
    ends.append(digest(out))
    shutil.rmtree(out + "/checkpoints")  # a gigabyte a run
print(json.dumps({"whole": digest(folder + "/whole"), "ends": ends, "killed": killed}))
"""


@pytest.mark.slow
def test_killed_twenty_times(tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((Path(__file__).parents[2] / "docs" / "photos").glob("*.jpg"))[:10]:
        with Image.open(path) as image:
            image.thumbnail((200, 200))
            image.save(images / path.name)
    settings = {
        "batch.images": "8",
        "batch.per_device": "4",
        "schedule.images": "64",
        "schedule.warmup_images": "16",
        "run.precision": "float32",
        "run.held_out": "0.4",
        "run.evaluate_every": "3",
        "run.checkpoint_every": "2",
        "model.dropout": "0.5",
        "model.neck_channels": "32",
    }
    arguments = json.dumps([str(images), str(tmp_path), settings, 20])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["killed"] >= 20
    assert len(found["ends"]) >= 2
    assert set(found["ends"]) == {found["whole"]}
    # What the killed runs said is as whole as what they learnt.
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "run0")
    ]
    assert [row["step"] for row in logs[1]] == sorted(row["step"] for row in logs[1])
    assert logs[0][-1]["held_out"]["accuracy"] == logs[1][-1]["held_out"]["accuracy"]
