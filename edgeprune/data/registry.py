"""What each data set is: its files with their checksums, where they come from, under which licence. Needs no torch.

The sha256 are of the published files; the md5 are those that the publishers print, kept to check one against the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.errors import EdgePruneError, nearest


@dataclass(frozen=True)
class FileSpec:
    """A published file: its path inside the data set's folder, its size in bytes, its checksums in hex."""

    name: str
    size: int
    sha256: str
    md5: str = ""


@dataclass(frozen=True)
class Download:
    """What one request brings: ``file``, from the first of ``urls`` that gives it.

    ``members``: where ``file`` is an archive, what of it is kept; path inside the archive -> the file it becomes.
    """

    file: FileSpec
    urls: tuple[str, ...]
    members: tuple[tuple[str, FileSpec], ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set. ``layouts`` are the sets of file names that a reader takes, best first (empty: needs no file)."""

    name: str
    what: str
    licence: str
    cite: str
    layouts: tuple[tuple[str, ...], ...] = ()
    downloads: tuple[Download, ...] = ()
    note: str = ""

    @property
    def published(self) -> dict[str, FileSpec]:
        """Every file with a published checksum, by name."""
        kept = [spec for d in self.downloads for spec in ([m for _, m in d.members] if d.members else [d.file])]
        return {spec.name: spec for spec in kept}

    @property
    def download_size(self) -> int:
        """Bytes that a fetch brings."""
        return sum(download.file.size for download in self.downloads)


IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
HAR_NPZ = "uci_har.npz"
HAR_ZIP = "UCI HAR Dataset.zip"


def _idx(bases: tuple[str, ...], *facts: tuple[int, str, str]) -> tuple[Download, ...]:
    """The four files, found under each of ``bases``; ``facts``: size, sha256, md5 of each."""
    return tuple(
        Download(FileSpec(name, *fact), tuple(f"{base}{name}" for base in bases))
        for name, fact in zip(IDX_FILES, facts, strict=True)
    )


_MNIST = Source(
    "mnist",
    "70,000 handwritten digits, grey 28x28, 10 classes",
    "commonly CC BY-SA 3.0",
    "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition, 1998",
    (IDX_FILES,),
    _idx(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        (
            9912422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        (
            28881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "d53e105ee54ea40749a09fcbcd1e9432",
        ),
        (
            1648877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "9fb629c4189551a2d022fa330f9573f3",
        ),
        (
            4542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
)

_FASHION = Source(
    "fashion-mnist",
    "70,000 pictures of clothes, grey 28x28, 10 classes",
    "MIT",
    "H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv 1708.07747, 2017",
    (IDX_FILES,),
    _idx(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        (
            26421880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        ),
        (
            29515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "25c81989df183df01b3e8a0aad5dffbe",
        ),
        (
            4422102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "bef4ecab320f06d8554ea6380940ec79",
        ),
        (
            5148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
)

_CIFAR_SHA256 = (
    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
)
_CIFAR = Source(
    "cifar-10",
    "60,000 photographs, colour 32x32, 10 classes",
    "not stated by its authors",
    "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    (CIFAR_FILES,),
    (
        Download(
            FileSpec(
                "cifar-10-binary.tar.gz",
                170052171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                "c32a1d4ab5d03f1284b67883e8d87530",
            ),
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            tuple(
                (f"cifar-10-batches-bin/{name}", FileSpec(name, 30_730_000, digest))
                for name, digest in zip(CIFAR_FILES, _CIFAR_SHA256, strict=True)
            ),
        ),
    ),
    "the binary version; a folder cifar-10-batches-bin is read too",
)

_HAR = Source(
    "uci-har",
    "10,299 windows of a phone's motion sensors, 9x128, 6 activities, 30 people",
    "CC BY 4.0",
    "J. Reyes-Ortiz, D. Anguita, A. Ghio, L. Oneto, X. Parra, Human Activity Recognition Using Smartphones, UCI, 2013",
    ((HAR_NPZ,), (HAR_ZIP,)),
    (
        Download(
            FileSpec(
                "human+activity+recognition+using+smartphones.zip",
                61005872,
                "c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031",
            ),
            ("https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip",),
            (
                (
                    HAR_ZIP,
                    FileSpec(HAR_ZIP, 60999314, "2045e435c955214b38145fb5fa00776c72814f01b203fec405152dac7d5bfeb0"),
                ),
            ),
        ),
    ),
    f"the archive is read as it is; so is {HAR_NPZ} with the same arrays",
)

_SHAKESPEARE = Source(
    "tinyshakespeare",
    "1.1 MB of Shakespeare's plays, 65 characters",
    "public domain",
    "A. Karpathy, char-rnn, 2015",
    (("input.txt",),),
    (
        Download(
            FileSpec("input.txt", 1115394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
            ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
        ),
    ),
)

_DIGITS = Source(
    "digits",
    "1,797 handwritten digits, grey 8x8, 10 classes",
    "CC BY 4.0",
    "E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
    note="comes with scikit-learn",
)

SOURCES: dict[str, Source] = {s.name: s for s in (_DIGITS, _MNIST, _FASHION, _CIFAR, _HAR, _SHAKESPEARE)}


def source(name: str) -> Source:
    """The data set ``name``. Raises :class:`EdgePruneError` with the nearest known one."""
    if name not in SOURCES:
        raise EdgePruneError(f"data: unknown data set {name!r}{nearest(name, SOURCES)}")
    return SOURCES[name]
