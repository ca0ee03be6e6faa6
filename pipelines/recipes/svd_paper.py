"""The paper from top to bottom: raw videos in, Stable Video Diffusion out (arXiv 2311.15127).

    python -m pipelines.recipes.svd_paper VIDEOS OUT

Run it again to resume. The numbers are the paper's unless a comment says "ours"; docs/paper-map.md lists the
differences, training/stages.py the settings of each training run.
"""

from pathlib import Path

from clipmill.motion import MotionConfig
from curation.captioners.coca import CocaConfig
from curation.captioners.endpoint import MergedConfig, VideoConfig
from curation.scan.one_pass import ScanConfig
from curation.scores.aesthetics import AestheticConfig
from curation.scores.clip_embedder import ClipEmbedderConfig
from curation.selection.rules import Rules
from curation.shots.cuts import CutConfig
from curation.shots.spans import SpanConfig
from pipelines.config import CaptionersConfig, CurateConfig
from pipelines.recipes.steps import Recipe, command

CURATION = CurateConfig(
    scan=ScanConfig(
        # 3.1, App. C: a cascade of three cut detectors: every frame, four and one per second. Fades and dissolves too.
        cuts=CutConfig(fast_fps=4.0, slow_fps=1.0),
        # App. C: clips start on keyframes and are remuxed; ours: transcoded if alignment would drop over 0.5 s.
        spans=SpanConfig(extraction="auto", min_s=2.0),
        # App. C: optical flow at 2 frames per second, averaged into one score.
        motion=MotionConfig(samples_per_s=2.0),
    ),
    # 3.1: CoCa captions the middle frame, a second model the video (ours, for V-BLIP), a language model merges both.
    captioners=CaptionersConfig(
        coca=CocaConfig(),
        video=VideoConfig(base_url="http://localhost:8000/v1", model="Qwen/Qwen2.5-VL-7B-Instruct"),
        merged=MergedConfig(base_url="http://localhost:8001/v1", model="Qwen/Qwen2.5-7B-Instruct"),
    ),
    # App. C: CLIP embeddings of first, middle and last frame; cosine to each caption; LAION's aesthetic head on them.
    clip_embedder=ClipEmbedderConfig(model="ViT-L-14", pretrained="openai"),
    aesthetic=AestheticConfig(head="large"),
)
FILTERED = (
    Rules.from_values(  # 3.3, App. E.2.2: per-score percentiles chosen by human preference, on the unfiltered set
        {
            "name": "filtered",
            "rules": {
                "motion": {"drop_lowest": "25%"},
                "aesthetic": {"drop_lowest": "25%"},
                "similarity": {"drop_lowest": "50%"},
                "text_area": {"drop_highest": "25%", "max": 0.07},  # App. C: text covers at most 7 % of the frame
                "duplicate_rank": {"max": 0},  # ours
            },
        },
        origin="FILTERED",
    )
)
# 3.4, 4.1: a small high-quality set; the criteria are ours.
BEST = FILTERED.model_copy(update={"name": "best", "where": "width >= 1024"})


def svd_paper(recipe: Recipe) -> Path:
    """Curate, select and train; returns the image-to-video model."""
    recipe.curate(CURATION)  # 3.1: LVD
    filtered, best = recipe.select(FILTERED), recipe.select(BEST)  # 3.3: LVD-F
    images, clips, best_clips = recipe.shards(filtered, images=True), recipe.shards(filtered), recipe.shards(best)
    # 3.2, App. D: stage I, image pretraining: adapt Stable Diffusion 2.1 to EDM noise levels, then to smaller frames.
    swapped = recipe.train("noise-swap", images, init=recipe.init)
    image_model = recipe.train("image", images, init=swapped)
    # 3.3, 4.1, App. D: stage II, video pretraining: insert temporal layers, then larger frames and more noise.
    small = recipe.train("video", clips, init=image_model)
    base = recipe.train("video-base", clips, init=small)
    # 3.4, 4.2, App. D: stage III, high-quality finetuning: text to video, and image to video at two sizes.
    recipe.train("text-to-video", best_clips, init=base)
    image_to_video = recipe.train("image-to-video-base", best_clips, init=base)
    return recipe.train("image-to-video", best_clips, init=image_to_video)


if __name__ == "__main__":
    command(svd_paper, __doc__)
