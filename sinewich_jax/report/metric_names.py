"""How metrics are called and written: one place for pages and pictures."""

from __future__ import annotations

import math

_NAMES = {
    "miou": ("mIoU", "counts pooled over the set, mean over all classes, an absent class is 0"),
    "miou_present": ("mIoU of present classes", "as mIoU, without classes that occur nowhere"),
    "pixel_accuracy": ("pixel accuracy", "fraction of valid pixels with the right class"),
    "max_miou": ("max mIoU", "foreground IoU an image, mean over images, best of 15 thresholds"),
    "maxf": ("max F", "pooled counts, beta^2 = 0.3, best of 19 thresholds"),
    "maxf_beta1": ("max F1", "precision and recall averaged over images, best of 15 thresholds"),
    "miou2": ("mIoU of two classes", "foreground and background at threshold 0.5, pooled"),
    "mean_deg": ("mean angle", "mean over valid pixels of the set"),
    "median_deg": ("median angle", "over valid pixels of the set, to 0.05 degrees"),
    "rmse_deg": ("RMS angle", "root mean square over valid pixels of the set"),
    "within_11_25": ("within 11.25 deg", "fraction of valid pixels"),
    "within_22_5": ("within 22.5 deg", "fraction of valid pixels"),
    "within_30": ("within 30 deg", "fraction of valid pixels"),
    "rmse": ("RMSE", "pooled over valid pixels of the set; no cap, no rescaling"),
    "abs_rel": ("relative error", "mean |z - y| / y"),
    "sq_rel": ("squared relative error", "mean (z - y)^2 / y"),
    "log_rmse": ("log RMSE", "root mean square of ln z - ln y"),
    "f": ("F", "dilation matching, pooled, best of 99 thresholds; not comparable with SEISM odsF"),
    "precision": ("precision", "at the threshold of F"),
    "recall": ("recall", "at the threshold of F"),
    "threshold": ("threshold", "where F is best"),
    "f_image": ("F, best an image", "each image at its own threshold, counts then pooled"),
    "ods": ("odsF", "suppression, thinning, one-to-one matching; best of 101 thresholds"),
    "ods_threshold": ("threshold of odsF", "one for all images"),
    "ois": ("oisF", "as odsF, each image at its own threshold"),
    "ods_distance": ("matching distance of odsF", "fraction of the image's diagonal"),
    "ods_images": ("images matched for odsF", ""),
    "ods_ap": ("average precision of matching", "area under precision against recall"),
    "ap": ("average precision", "area under precision against recall"),
    "accuracy": ("accuracy", "share of texts with the right answer"),
    "f1": ("F1", "of class 1 of two; of more classes the mean over those that occur"),
    "matthews": (
        "Matthews correlation",
        "of labels and answers, R_K for any number of classes; 0 where either are of one class",
    ),
    "spearman": ("Spearman correlation", "of ranks; equal values share their mean rank"),
    "pearson": ("Pearson correlation", "of labels and answers"),
    "mse": ("squared error", "mean (z - y)^2, in squared units of the label"),
}

# Metrics whose unit is not a fraction; a task's own unit is that of its primary metric.
_UNITS = {
    "mean_deg": "deg",
    "median_deg": "deg",
    "rmse_deg": "deg",
    "rmse": "m",
    "sq_rel": "m",
}


def label(key: str) -> str:
    """The name for people; an unknown metric keeps its key."""
    return _NAMES.get(key, (key.replace("_", " "), ""))[0]


def meaning(key: str) -> str:
    """Which of the many variants the metric is; empty for an unknown one."""
    return _NAMES.get(key, ("", ""))[1]


def unit(key: str) -> str:
    """Unit of a metric, empty for a fraction."""
    return _UNITS.get(key, "")


def number(value: float | None, of_unit: str = "", missing: str = "no value") -> str:
    """A value to the digits that its unit deserves, without the unit.

    Args:
      value: the number; None and what is not finite give ``missing``.
      of_unit: ``"deg"`` takes two decimals, everything else four.
      missing: text of a number that is not there.
    """
    if value is None or not math.isfinite(value):
        return missing
    return f"{value:.2f}" if of_unit == "deg" else f"{value:.4f}"
