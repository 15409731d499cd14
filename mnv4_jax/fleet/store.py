"""The folder of a job, local or in a bucket; its files are written atomically."""

import atexit
import os
import pathlib
import tempfile

import fsspec

from input_pipeline.cli import UserError


class Store:
    """A folder by path or URL.

    Raises:
      UserError: the package for this kind of URL is not installed.
    """

    def __init__(self, folder: str):
        folder = folder.removeprefix("file://")
        self.folder = folder if "://" in folder else os.path.abspath(folder)
        self._local = "://" not in folder
        self._drafts: dict[str, str] = {}
        try:
            self._fs, self._path = fsspec.core.url_to_fs(self.folder)
        except (ImportError, ValueError) as error:
            raise UserError(f"--out={folder}: {error}") from None

    def make(self) -> None:
        self._fs.makedirs(self._path, exist_ok=True)

    def path(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def names(self, folder: str) -> list[str]:
        """The sorted names in a sub-folder; in a bucket, one request per thousand files."""
        try:
            found = self._fs.ls(self.path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def exists(self, name: str) -> bool:
        return self._fs.exists(self.path(name))

    def open(self, name: str):
        """Opens a file to read bytes. In a bucket, without read-ahead, which would fetch 5 MB."""
        options = {} if self._local else {"cache_type": "none"}
        return self._fs.open(self.path(name), "rb", **options)

    def read(self, name: str) -> bytes:
        return self._fs.cat_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Writes atomically, under another name first. Objects in a bucket are always atomic."""
        if not self._local:
            self._fs.pipe_file(self.path(name), data)
            return
        file = pathlib.Path(self._path) / name
        file.parent.mkdir(exist_ok=True)
        new = file.with_name(f".{file.name}.new")  # readers of Parquet folders ignore dot files
        try:
            with new.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            new.unlink(missing_ok=True)  # free the space if the disk is full
            raise OSError(error.errno, error.strerror, str(file)) from error  # names the file
        new.replace(file)

    def draft(self, name: str) -> str:
        """The local path for the draft of `name`, which `put` moves here; the same at each call."""
        if self._local:
            return str(pathlib.Path(self._path) / f".{name}.new")
        if name not in self._drafts:
            descriptor, draft = tempfile.mkstemp()
            os.close(descriptor)
            atexit.register(pathlib.Path(draft).unlink, missing_ok=True)  # if `put` never comes
            self._drafts[name] = draft
        return self._drafts[name]

    def put(self, name: str) -> None:
        """Moves the draft of `name` to `name`."""
        if self._local:
            os.replace(self.draft(name), self.path(name))
        else:
            self._fs.put_file(self.draft(name), self.path(name))
            os.unlink(self._drafts.pop(name))
