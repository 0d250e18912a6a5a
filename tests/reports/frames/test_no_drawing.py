"""What figures, tables and texts are made from is computed without a drawing library."""

import subprocess
import sys
from pathlib import Path

REPORTS = Path(__file__).parents[3] / "lorax" / "reports"


def test_frames_and_texts_load_no_matplotlib():
    """Frames, text formats and everything that writes sentences; `study` alone puts figures beside them."""
    files = [path for folder in ("frames", "text", "published", ".") for path in (REPORTS / folder).glob("*.py")]
    names = [".".join(path.relative_to(REPORTS).with_suffix("").parts) for path in files]
    modules = sorted(f"lorax.reports.{name}" for name in names if name not in ("study", "scale", "__init__"))
    code = f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n"
    code += "    if 'matplotlib' in sys.modules: sys.exit(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert len(modules) > 15 and done.returncode == 0, done.stderr
