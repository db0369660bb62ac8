"""What each row contributes to a statistic of all rows together: an interval for numbers that are no means of rows."""

from torch import Tensor


def influence(whole: Tensor, without_N: Tensor) -> Tensor:
    """Return values (N,) whose mean is a statistic of N rows, and whose spread says how sure it is.

    They are the jackknife's: their standard error is Tukey's, and resampling them is resampling the rows to first order
    (Efron & Stein 1981). Of a mean they are the rows' own values. One row alone has no spread, and is one value.

    Args:
        whole: the statistic of all rows, a scalar.
        without_N: what it is when one of them, each in turn, is left out.

    Example:
        >>> import torch
        >>> rows = torch.tensor([1.0, 2.0, 6.0])
        >>> influence(rows.mean(), (rows.sum() - rows) / 2).tolist()
        [1.0, 2.0, 6.0]
    """
    count = len(without_N)
    if count < 2:
        return whole.float().reshape(1)
    others_N = without_N.double()
    moved_N: Tensor = (count - 1) * (others_N.mean() - others_N)
    return (whole.double() + moved_N).float()
