"""What is in the folders of a dataset: in an object store each question is a request."""

from fsspec import AbstractFileSystem

from clipmill import storage


class Listings:
    """Files and folders directly in a folder, as they are at each call."""

    def __init__(self, fs: AbstractFileSystem) -> None:
        self._fs = fs

    def files(self, folder: str, suffix: str = "") -> list[str]:
        """See `storage.list_files`."""
        return [path for path in self._listed(folder)[0] if path.endswith(suffix)]

    def folders(self, folder: str) -> list[str]:
        """See `storage.list_folders`."""
        return self._listed(folder)[1]

    def _listed(self, folder: str) -> tuple[list[str], list[str]]:
        return storage.list_folder(self._fs, folder)


class ListedOnce(Listings):
    """Each folder as it was when it was first asked for."""

    def __init__(self, fs: AbstractFileSystem) -> None:
        super().__init__(fs)
        self._seen: dict[str, tuple[list[str], list[str]]] = {}

    def _listed(self, folder: str) -> tuple[list[str], list[str]]:
        if folder not in self._seen:
            self._seen[folder] = super()._listed(folder)
        return self._seen[folder]
