"""Real traces for tests. None is part of this repository: their licences are their owners'."""

import os
from pathlib import Path

import pytest

CONVERSATION = "mooncake_conversation_trace.jsonl"  # FAST'25, 12,031 requests
AZURE_CONVERSATION = "AzureLLMInferenceTrace_conv.csv"  # 2023, 19,366 requests

FOLDER = Path(__file__).parents[3] / "shared" / "traces"


def real_trace(name: str) -> Path:
    """The file, from the folder named by KVBENCH_TRACES or from ../shared/traces; else a skip."""
    path = Path(os.environ.get("KVBENCH_TRACES") or FOLDER) / name
    if not path.is_file():
        pytest.skip(f"needs {path}: name a folder that has it in KVBENCH_TRACES")
    return path
