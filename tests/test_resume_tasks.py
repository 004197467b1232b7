"""Tasks with teachers: six steps are three steps, a checkpoint and three more, weights, losses and verdicts alike."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from stores import pictures, store_of

from ssl_med.data.module import StoreData
from ssl_med.learner import Learner
from ssl_med.tasks import DINO, MAE, MoCoV3, PretextTask

STEPS, SAVED = 6, 3
TASKS = {
    "DINO": lambda vit: DINO(vit(2), prototypes=32, hidden_dim=24, bottleneck_dim=8, ibot=1.0, koleo=0.1),
    "MoCo v3": lambda vit: MoCoV3(vit(2), hidden_dim=16, out_dim=8),
    "MAE": lambda vit: MAE(vit(2), decoder_dim=24, decoder_depth=1, decoder_heads=2),
}


def quiet(test):
    """Advice of Lightning that does not apply; ``fit`` silences the same."""
    for text in (".*does not have many workers", ".*isinstance.treespec", ".*`max_epochs`"):
        test = pytest.mark.filterwarnings(f"ignore:{text}")(test)
    return test


class Look(pl.Callback):
    """What every step says: its loss, the signs, what they amount to; and a checkpoint after some steps."""

    def __init__(self, save: Path | None) -> None:
        self.save = save
        self.losses: dict[int, float] = {}
        self.signs: dict[int, dict[str, float]] = {}
        self.verdicts: dict[int, str] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Learner, outputs, batch, *args) -> None:
        step = trainer.global_step
        self.losses[step] = float(outputs["loss"])
        module.task.eval()
        with torch.no_grad():
            signs = module.task.vital_signs(batch)
        module.task.train()
        self.signs[step] = {name: float(value) for name, value in signs.items()}
        bad = {"masked_error": 0.99, "blank_error": 0.95, "feature_spread": 1.0, "effective_rank": 5.0}
        if isinstance(module.task, MAE):  # an error that stands still says something in the second half only
            self.verdicts[step] = module.task.verdict({**bad, "constant_patches": 0.0})
        else:
            self.verdicts[step] = module.task.verdict({**bad, **self.signs[step]})
        if step == SAVED and self.save:
            trainer.save_checkpoint(self.save)


def run(task: PretextTask, store: Path, out: Path, checkpoint: Path | None = None) -> tuple[Look, dict]:
    look, learner = Look(None if checkpoint else out / "3.ckpt"), Learner(task, lr=1e-2)
    trainer = pl.Trainer(
        max_steps=STEPS,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
        callbacks=[look],
    )
    trainer.fit(learner, datamodule=StoreData(str(store), 16, 8), ckpt_path=checkpoint, weights_only=True)
    return look, task.state_dict()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume_tasks")
    return store_of(pictures(folder / "in", 20), folder / "store").folder


@quiet
@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_a_resumed_training_is_the_whole_one(make, tiny_vit, store: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole, state = run(make(tiny_vit), store, tmp_path)
    torch.manual_seed(1)  # what a resumed run begins with does not matter
    resumed, found = run(make(tiny_vit), store, tmp_path, tmp_path / "3.ckpt")
    assert list(resumed.losses) == [4, 5, 6]
    for seen in ("losses", "signs", "verdicts"):
        assert getattr(resumed, seen) == {step: getattr(whole, seen)[step] for step in (4, 5, 6)}, seen
    assert state.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in state.items())


@quiet
def test_a_resumed_mae_remembers_the_error_of_its_last_look(tiny_vit, store: Path, tmp_path: Path) -> None:
    """Whether the error still falls is judged beside it: at the first look after a resume too."""
    whole, _ = run(TASKS["MAE"](tiny_vit), store, tmp_path)
    assert "not predicted" in whole.verdicts[4]
    resumed, _ = run(TASKS["MAE"](tiny_vit), store, tmp_path, tmp_path / "3.ckpt")
    assert "not predicted" in resumed.verdicts[4]
