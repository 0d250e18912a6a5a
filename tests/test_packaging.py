"""The wheel holds the package, conf/ and the plugins, and works outside the checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_editable_install_reads_the_live_conf_folder():
    from lorax.config import conf_dir

    assert conf_dir() == ROOT / "conf"


@pytest.mark.slow
def test_wheel_runs_outside_the_checkout(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("lorax_bench-*.whl"))
    held = zipfile.ZipFile(wheel).namelist()
    assert {"lorax/conf/config.yaml", "hydra_plugins/lorax/sweeper.py", "lorax/py.typed"} <= set(held)
    assert not any(name.startswith(("tests", "conf", "results")) for name in held)
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    site = next((home / "lib").glob("python*/site-packages"))
    # The dependencies are this environment's own; the package itself comes from the wheel.
    import numpy

    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    (site / "deps.pth").write_text(str(Path(numpy.__file__).parents[1]) + "\n")
    words = ["init=pissa", "rank=2", "model=toy", "task=toy", "steps=2", "track=none", f"results_dir={tmp_path}/r"]
    code = "import lorax.config, lorax.run; print(lorax.config.conf_dir()); lorax.run.main()"
    done = subprocess.run(
        [python, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"LORAX_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout.splitlines()[0] and list((tmp_path / "r" / "records").rglob("*.json"))
