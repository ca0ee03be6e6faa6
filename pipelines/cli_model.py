"""The model's commands of `clipmill`: latents, training, sampling, export. What they need is imported as they run."""

from pathlib import Path
from typing import Annotated

import typer

from clipmill.errors import UserError
from pipelines.cli_shared import EXIT_CODES, PARTIAL, Address, NumCpus, TakeOver, console, say

app = typer.Typer()

Checkpoint = Annotated[
    Path, typer.Argument(help="A model: its folder, or a file in the layout of the release.", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting (group.key=value); repeatable.", show_default=False),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")]


@app.command(epilog=EXIT_CODES)
def cache_latents(
    data: Annotated[str, typer.Option(help="Clip or image shards.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the latent shards.", show_default=False)],
    stage: Annotated[str, typer.Option(help="Preset whose frames and encoders are meant.", show_default=False)],
    init: Annotated[Path, typer.Option(help="Model with autoencoder and encoder.", show_default=False)],
    augmentations_per_clip: Annotated[
        int, typer.Option(min=1, help="Draws of frames, rate and crop of each clip.")
    ] = 1,
    config: Annotated[
        Path | None, typer.Option(help="YAML with settings that differ from the preset.", show_default=False)
    ] = None,
    change: Changes = None,
    take_over: TakeOver = False,
    address: Address = None,
    num_cpus: NumCpus = None,
    device: Device = None,
) -> None:
    """Compute latents and embeddings once: shards that `clipmill train` reads in the place of clips."""
    from pipelines.cache_latents import cache_latents as run
    from pipelines.train import resolve_stage

    chosen = resolve_stage(stage, config, change or [])
    done = run(
        chosen,
        data,
        out,
        init=init,
        augmentations_per_clip=augmentations_per_clip,
        take_over=take_over,
        address=address,
        num_cpus=num_cpus,
        device=device,
    )
    say(f"{done.samples:,} samples in {done.shards:,} shards, {done.bytes / 2**20:,.1f} MiB: {done.folder}")
    for key, reason in done.failed.items():
        say(f"left out: {key}: {reason}")
    if done.failed:
        raise typer.Exit(PARTIAL)


@app.command(epilog=EXIT_CODES)
def train(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; the same command goes on with it.", show_default=False)
    ] = None,
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
    change: Changes = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML list of stages to run one after another.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print a cost estimate and exit.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="For --dry-run: how many.")] = 1,
    ray_workers: Annotated[
        int | None,
        typer.Option(min=1, help="Train on this many Ray workers, restarted if they fail.", show_default=False),
    ] = None,
    address: Address = None,
    device: Device = None,
) -> None:
    """Train a stage of the paper's recipe on shards, or resume it. Under torchrun, on all of its processes.

    Ctrl-C and SIGTERM save a checkpoint first; the same command resumes from it.
    """
    if recipe is not None:
        stage_options = {
            "--stage": stage, "--data": data, "--images": images, "--init": init, "--config": config, "--set": change,
            "--ray-workers": ray_workers, "--address": address,
        }  # fmt: skip
        ignored = ", ".join(name for name, value in stage_options.items() if value)
        if ignored:
            raise UserError(f"--recipe cannot go with {ignored}: its file says it all, and runs in this process")
        _train_recipe(recipe, out, gpus=gpus if dry_run else None, device=device)
        return
    if stage is None:
        raise UserError("name a --stage, or give a --recipe")
    from pipelines import train as training
    from pipelines.render import estimate_table

    chosen = training.resolve_stage(stage, config, change or [])
    if dry_run:
        console().print(estimate_table(training.dry_run(chosen, gpus)))
        return
    if data is None or out is None:
        raise UserError("--data and --out are needed: the shards to train on, and the folder of the run")
    if ray_workers is not None:
        from pipelines.train_on_ray import train_on_ray

        model = train_on_ray(
            chosen, data, out, workers=ray_workers, images=images, init=init, address=address, device=device
        )
    else:
        model = training.train(chosen, data, out, images=images, init=init, device=device)
    say(f"trained: {model}")


def _train_recipe(recipe: Path, out: Path | None, *, gpus: int | None, device: str | None) -> None:
    """Train the stages of a recipe; with `gpus`, print what each would cost on so many instead."""
    from pipelines.recipe import read_recipe, train_recipe
    from pipelines.render import estimate_table
    from pipelines.train import dry_run

    if gpus is not None:
        for entry in read_recipe(recipe).stages:
            say(f"{entry.folder}: {entry.stage.description}")
            console().print(estimate_table(dry_run(entry.stage, gpus)))
        return
    if out is None:
        raise UserError("--out is missing: the folder of the runs")
    for model in train_recipe(recipe, out, device=device):
        say(f"trained: {model}")


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
    from pipelines.sample import SampleRequest
    from pipelines.sample import sample as run

    request = SampleRequest(
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
    video = run(checkpoint, out, request)
    say(
        f"{video.video}: {video.task}, {video.frames} frames of {video.width_px} x {video.height_px}, "
        f"{video.seconds:.1f} s\n{video.sheet}: its frames side by side"
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
    say(f"written: {written}")
