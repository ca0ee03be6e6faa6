"""The command line of `clipmill`: one function per command."""

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from curation.captioners import CAPTIONERS
from curation.config import unknown_name
from curation.duplicates import DuplicatesConfig, find_duplicates
from curation.errors import RunStopped, UserError
from curation.rules import load_rules
from curation.scores import SCORERS
from curation.tables import Dataset
from pipelines import render
from pipelines.config import CurateConfig
from pipelines.inspect import inspect as inspect_videos
from pipelines.select import DEFAULT_PRESET
from pipelines.select import select as select_clips
from pipelines.status import models_of
from pipelines.status import status as read_status

FAILED, BAD_REQUEST, NOTHING_CAME_OUT, CAPTIONS_FAILED = 1, 2, 3, 4

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed on the way (run the same command again: what is done stays done); 2 a request that "
    "cannot be carried out, or no usable input; 3 it ran, but the result is empty; 4 it ran, but captions failed; "
    "130 interrupted."
)

app = typer.Typer(
    name="clipmill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Raw videos in, scored clips in a table, selected WebDataset shards out.",
    epilog=EXIT_CODES,
)

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, globs, s3:// or any fsspec URL, or a .txt, .csv or .parquet list with an address "
        "column (uri, url, path, file or video) and, if you like, a caption column.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML with settings that differ from the defaults.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output, on stdout alone.")]


DatasetFolder = Annotated[str, typer.Argument(help="Dataset folder, local or any fsspec URL.", show_default=False)]
Without = Annotated[
    str | None,
    typer.Option(help=f"Scores to leave out, with commas between them: {', '.join(SCORERS)}.", show_default=False),
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to run on; without it, RAY_ADDRESS or this machine.", show_default=False),
]
Checkpoint = Annotated[
    Path, typer.Argument(help="A model: its folder, or a file in the layout of the release.", show_default=False)
]


@app.command(epilog=EXIT_CODES)
def curate(
    inputs: Inputs,
    out: Annotated[str, typer.Option(help="Dataset folder, local or any fsspec URL.", show_default=False)],
    config: ConfigFile = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take at most this many inputs.", show_default=False)] = None,
    without: Without = None,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Try sources again that an earlier run rejected.")
    ] = False,
    retry_captions: Annotated[
        bool, typer.Option("--retry-captions", help="Do sources again near which a captioner failed.")
    ] = False,
    address: Address = None,
) -> None:
    """Find the shots of every video, score every clip, and write the tables of a dataset.

    Run the same command again after an interruption: only what is missing is done. Bad videos are rows with a
    reason in the sources table and stop nothing.
    """
    from pipelines.curate import curate as run

    settings = _config(config, without)
    result = run(
        inputs,
        out,
        config=settings,
        limit=limit,
        retry_rejected=retry_rejected,
        retry_captions=retry_captions,
        address=address,
    )
    render.print_curation(console(), result)
    if not result.status.clips:
        _nothing_came_out("no clip came out: see the reasons above")
    failed = {name: count for name, count in result.status.captions_failed.items() if name in CAPTIONERS}
    if failed:
        counts = ", ".join(f"{count:,} of {name}" for name, count in failed.items())
        complain(
            f"captions failed: {counts}. The clips are there with all else; the reasons are in their captions. Once "
            "the cause is mended, run the same command with --retry-captions."
        )
        raise typer.Exit(CAPTIONS_FAILED)


@app.command(epilog=EXIT_CODES)
def duplicates(
    dataset: DatasetFolder,
    min_cosine: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="How near copies are; by default as the run had it.", show_default=False),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Find re-uploads and re-encodings among the clips: the column duplicate_rank, 0 for the best of each group.

    `clipmill curate` does this by itself; this is for other settings, and after tables were copied together.
    """
    opened = Dataset(dataset).open()
    values = dict(models_of(opened).get("duplicates") or {})
    if config:
        values = (CurateConfig.from_file(config).duplicates or DuplicatesConfig()).model_dump()
    if min_cosine is not None:
        values["min_cosine"] = min_cosine
    settings = DuplicatesConfig.from_values(values, origin="duplicates")
    render.print_duplicates(console(), dataset, find_duplicates(opened, settings))


@app.command(epilog=EXIT_CODES)
def select(
    dataset: DatasetFolder,
    preset: Annotated[
        str | None, typer.Option(help=f"Rules that come along, by name; {DEFAULT_PRESET} if none.", show_default=False)
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file with your own rules instead.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the selection; by default the rules' own.", show_default=False)
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Skip rules on columns that the dataset does not have.")
    ] = False,
) -> None:
    """Choose clips by rules, by value or by percentile, and show what each rule removed."""
    if preset and config:
        raise UserError("--preset and --config are two sets of rules: give one of them")
    rules = load_rules(config) if config else preset or DEFAULT_PRESET
    selection = select_clips(dataset, rules, name=name, allow_missing=allow_missing)
    render.print_selection(console(), selection)
    if selection.empty:
        _nothing_came_out("no clip passed: loosen the rules that removed the most")


@app.command(epilog=EXIT_CODES)
def shard(
    dataset: DatasetFolder,
    selection: Annotated[str, typer.Option(help="Name of the selection to write.", show_default=False)],
    images: Annotated[bool, typer.Option("--images", help="Middle frames as JPEG, for image pretraining.")] = False,
    clips_per_shard: Annotated[int, typer.Option(min=1, help="Samples in one clip shard.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the shuffle across sources.")] = 0,
    address: Address = None,
) -> None:
    """Write the selected clips as WebDataset shards: DATASET/shards/SELECTION/*.tar and index.json."""
    from curation.shards import ShardConfig
    from pipelines.shard import shard as run

    settings = ShardConfig(clips_per_shard=clips_per_shard, seed=seed)
    result = run(dataset, selection, images=images, config=settings, address=address)
    render.print_shards(console(), result)
    if not result.index["totals"]["samples"]:
        _nothing_came_out("no clip could be taken: see the index")


@app.command(epilog=EXIT_CODES)
def status(dataset: DatasetFolder, as_json: AsJson = False) -> None:
    """Show what a dataset holds: sources, clips, selections and shards."""
    found = read_status(Dataset(dataset))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        render.print_status(console(), found)


@app.command(epilog=EXIT_CODES)
def inspect(videos: Inputs, config: ConfigFile = None, without: Without = None, as_json: AsJson = False) -> None:
    """Show what the pipeline sees in a video: probe, transitions, clips, scores. Writes nothing."""
    usable = 0
    for seen in inspect_videos(videos, _config(config, without)):
        usable += seen.error_kind is None
        if as_json:
            print(json.dumps(asdict(seen)), flush=True)
        else:
            render.print_inspection(console(), seen)
    if not usable:
        raise UserError("no usable input: see the reason for each above")


@app.command(epilog=EXIT_CODES)
def encode(
    data: Annotated[str, typer.Option(help="Clip or image shards.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the latent shards.", show_default=False)],
    stage: Annotated[str, typer.Option(help="Preset whose frames and encoders are meant.", show_default=False)],
    init: Annotated[Path, typer.Option(help="Model with autoencoder and encoder.", show_default=False)],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="group.key=value, as often as you like.", show_default=False)
    ] = None,
    address: Address = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")] = None,
) -> None:
    """Compute latents and embeddings once: shards that `clipmill train` reads in the place of clips."""
    from pipelines.encode import encode as run
    from pipelines.train import resolve_stage

    done = run(resolve_stage(stage, None, change or []), data, out, init=init, address=address, device=device)
    console().print(
        f"{done.samples:,} samples in {done.shards:,} shards, {done.bytes / 2**20:,.1f} MiB: "
        f"{render.printable(str(done.folder))}",
        markup=False,
        soft_wrap=True,
    )
    for key, reason in done.failed.items():
        console().print(f"left out: {render.printable(f'{key}: {reason}')}", markup=False, soft_wrap=True)


@app.command(epilog=EXIT_CODES)
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on with it.", show_default=False)],
    stage: Annotated[
        str | None, typer.Option(help="Preset, such as image-to-video or tiny-video.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Shards: a folder, a tar or a pattern of tars.", show_default=False)
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Image shards beside them (joint training).", show_default=False)
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Model or finished run to start from.", show_default=False)] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML with settings that differ from the preset.", show_default=False)
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="group.key=value, as often as you like.", show_default=False)
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML list of stages to run one after another.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost; train nothing.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="For --dry-run: how many.")] = 1,
    ray_workers: Annotated[
        int | None,
        typer.Option(min=1, help="Train on this many Ray workers, restarted if they fail.", show_default=False),
    ] = None,
    address: Address = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")] = None,
) -> None:
    """Train a stage of the paper's recipe on shards, or go on with it. Under torchrun, on all of its processes."""
    from pipelines import train as training

    if recipe is not None:
        for finished in training.train_recipe(recipe, out, device=device):
            console().print(f"trained: {render.printable(str(finished))}", markup=False, soft_wrap=True)
        return
    if stage is None:
        raise UserError("name a --stage, or give a --recipe")
    chosen = training.resolve_stage(stage, config, change or [])
    if dry_run:
        console().print(render.estimate_table(training.dry_run(chosen, gpus)))
        return
    if data is None:
        raise UserError("--data is missing: the shards to train on")
    if ray_workers is not None:
        run = training.train_on_ray(
            chosen, data, out, workers=ray_workers, images=images, init=init, address=address, device=device
        )
    else:
        run = training.train(chosen, data, out, images=images, init=init, device=device)
    console().print(f"trained: {render.printable(str(run))}", markup=False, soft_wrap=True)


@app.command(epilog=EXIT_CODES)
def sample(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="The video, .mp4; its contact sheet lies beside it, .png.")] = Path(
        "sample.mp4"
    ),
    image: Annotated[
        Path | None, typer.Option(help="Picture to start from; cut in the middle to the size.", show_default=False)
    ] = None,
    last_image: Annotated[Path | None, typer.Option(help="Interpolation: where to end.", show_default=False)] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to video: what to show.", show_default=False)] = None,
    elevation: Annotated[
        float | None, typer.Option(help="Multi-view: degrees of the camera above the object.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    frames: Annotated[int | None, typer.Option(min=1, help="Instead of the model's own.", show_default=False)] = None,
    fps: Annotated[float, typer.Option(min=1, help="Told to the model, and of the file.")] = 7.0,
    motion: Annotated[float, typer.Option(min=0, max=255, help="Motion bucket: 0 is still.")] = 127.0,
    noise_augmentation: Annotated[float, typer.Option(min=0, help="Noise on the pictures given.")] = 0.02,
    steps: Annotated[int, typer.Option(min=1, help="Of the sampler; 25 or 30 are usual.")] = 25,
    guidance: Annotated[
        str | None,
        typer.Option(help="SCALE, or FIRST:LAST over the frames, such as 1.0:3.0.", show_default=False),
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT instead of the model's.", show_default=False)] = None,
    decode_frames: Annotated[
        int | None, typer.Option(min=1, help="Decode so many frames at a time: less memory.", show_default=False)
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="Adapters to put on, .safetensors.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="cuda where there is one, else cpu.", show_default=False)] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by default bfloat16 on cuda.", show_default=False)
    ] = None,
) -> None:
    """Make a video with a model, from a picture, a text, or two pictures: what the model is for, its files say."""
    from pipelines.sample import Request
    from pipelines.sample import sample as run

    request = Request(
        image=image,
        last_image=last_image,
        prompt=prompt,
        elevation=elevation,
        seed=seed,
        frames=frames,
        fps=fps,
        motion=motion,
        noise_augmentation=noise_augmentation,
        steps=steps,
        guidance=guidance,
        size=size,
        decode_frames=decode_frames,
        lora=lora,
        device=device,
        dtype=dtype,
    )
    made = run(checkpoint, out, request)
    console().print(
        f"{render.printable(str(made.video))}: {made.task}, {made.frames} frames of {made.width_px} x "
        f"{made.height_px}, {made.seconds:.1f} s\n{render.printable(str(made.sheet))}: its frames side by side",
        markup=False,
        soft_wrap=True,
    )


@app.command(epilog=EXIT_CODES)
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="A new folder.", show_default=False)],
    format: Annotated[str, typer.Option(help="diffusers (a folder it runs) or original (one file).")] = "diffusers",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write a model for others: for StableVideoDiffusionPipeline, or in the layout of the release."""
    from pipelines.export import export as run

    written = run(checkpoint, out, format=format, dtype=dtype)
    console().print(f"written: {render.printable(str(written))}", markup=False, soft_wrap=True)


def console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=110)


def _nothing_came_out(sentence: str) -> NoReturn:
    complain(sentence)
    raise typer.Exit(NOTHING_CAME_OUT)


def _config(address: str | None, without: str | None) -> CurateConfig:
    config = CurateConfig.from_file(address) if address else CurateConfig()
    names = [name.strip() for name in without.split(",") if name.strip()] if without else []
    for name in names:
        if name not in SCORERS:
            raise UserError(unknown_name("score", name, list(SCORERS)))
    return config.model_copy(update={"without": tuple(sorted({*config.without, *names}))})


def main() -> None:
    """Run the command line and exit with one of the codes above; a user's mistake is one sentence on stderr."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except UserError as error:
        complain(str(error))
        sys.exit(FAILED if isinstance(error, RunStopped) else BAD_REQUEST)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def complain(sentence: str) -> None:
    """Say on stderr what is wrong."""
    text = "\n".join(render.printable(line) for line in sentence.splitlines())
    Console(stderr=True).print(f"clipmill: {text}", style="red", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
