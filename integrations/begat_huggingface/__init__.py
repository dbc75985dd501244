"""Hugging Face datasets and the Hub with begat: datasets as versions, versions as commits.

save_dataset(dataset, "digits")
dataset = load_dataset("digits:latest")
push_to_hub("digits:v3", "me/digits")
version = pull_from_hub("me/digits", revision="v3")
"""

from begat.errors import MissingExtra

try:
    from begat_huggingface.pull import pull_from_hub
    from begat_huggingface.push import PushedVersion, push_to_hub
    from begat_huggingface.tables import load_dataset, save_dataset
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"datasets", "huggingface_hub", "pyarrow"}:
        raise
    raise MissingExtra(
        f'begat_huggingface needs {error.name}, which is not installed: pip install "begat[huggingface]"'
    ) from error

__all__ = ["PushedVersion", "load_dataset", "pull_from_hub", "push_to_hub", "save_dataset"]
