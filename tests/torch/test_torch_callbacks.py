"""The callbacks for Lightning and for transformers' Trainer, where those are installed."""

import pytest
import torch
from modules import norm
from torch import nn

from opnorm.torch import SpectralNorm, constrain

pytestmark = pytest.mark.filterwarnings("ignore")  # what these packages warn of is theirs


def data(count=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 8, generator=generator), torch.randn(count, 1, generator=generator)


def test_lightning_trains_at_the_norm_and_logs_it(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    from opnorm.torch.lightning import SpectralMonitor

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

        def training_step(self, batch, index):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), 1e-2)
            constrain(self, optimizer, SpectralNorm())
            return optimizer

    model = Model()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[SpectralMonitor(every=4)], default_root_dir=tmp_path, **quiet
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=8))
    assert float(trainer.callback_metrics["spectral/net.0.weight"]) == pytest.approx(1.0, rel=1e-2)
    assert float(trainer.callback_metrics["spectral/outside"]) == 0
    assert norm(model.net[0].weight) == pytest.approx(1.0, rel=1e-3)


def test_the_trainer_of_transformers_logs_the_norms(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from opnorm.torch.transformers import SpectralMonitor

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 1)

        def forward(self, x, labels):
            outputs = self.net(x)
            return {"loss": nn.functional.mse_loss(outputs, labels), "logits": outputs}

    model, seen = Model(), []
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    constrain(model, optimizer, SpectralNorm())
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=6, logging_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    pairs = [{"x": x, "labels": y} for x, y in zip(*data(), strict=True)]
    trainer = transformers.Trainer(
        model, arguments, train_dataset=pairs, optimizers=(optimizer, None), callbacks=[SpectralMonitor(seen.append)]
    )
    trainer.train()
    logged = [entry["spectral/net.weight"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([1.0] * 3, rel=1e-2)
    assert [one["spectral/net.weight"] for one in seen] == logged
    assert norm(model.net.weight) == pytest.approx(1.0, rel=1e-3)


def test_the_kernels_of_gpt_2_are_known():
    transformers = pytest.importorskip("transformers")
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    block = GPT2Block(transformers.GPT2Config(n_embd=16, n_head=2), layer_idx=0)
    optimizer = torch.optim.SGD(block.parameters(), 0.0)
    rows = constrain(block, optimizer, SpectralNorm())
    for parameter in block.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert [row.path for row in rows] == [
        f"{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert norm(block.mlp.c_fc.weight) == pytest.approx(1.0, rel=1e-3)


def test_wrong_arguments_are_named():
    for package, call, name in (
        ("pytorch_lightning", lambda home: home.SpectralMonitor(every=0), "every"),
        ("transformers", lambda home: home.SpectralMonitor(log=3), "log"),
    ):
        pytest.importorskip(package)
        home = __import__(f"opnorm.torch.{package.removeprefix('pytorch_')}", fromlist=["SpectralMonitor"])
        with pytest.raises(ValueError, match=f"Argument `{name}` must"):
            call(home)
