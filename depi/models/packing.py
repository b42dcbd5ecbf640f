"""Ragged batches: tokens are kept as one list without padding, and put into rows only for attention.

Nearly all layers of a transformer treat each token by itself, so with a list of the real tokens absent
cameras and short prompts cost nothing. Attention needs one row per sample: there the tokens are copied into
rows of equal length, and back. The lengths of lists and rows are rounded up, so that few shapes occur.
A kernel that takes a list needs no rows, but the tokens sample by sample: the list is then put into that
order, once for all layers.

Letters in shapes:
    B batch   C camera slots   N patches per image   L prompt tokens   I images that are encoded
    T tokens in the list: I * N patches, then words   P places in a row
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Rows(NamedTuple):
    """The positions of the tokens of a list in rows.

    starts: of a list in the order of its samples, see `Sequences`; None for other lists.
    """

    source: Tensor  # int64 [B, P], the token at each place; any value where the place is empty
    place: Tensor  # int64 [T], the place b * P + p of each token; any value where the token is in no row
    filled: Tensor  # bool [B, P], False where the place is empty or masked
    used: Tensor  # bool [T], False for tokens that only round the list up
    starts: Tensor | None = None  # int32 [2 B + 1]


class Sequences(NamedTuple):
    """The order of a list's tokens by sample: in each as in its row; behind them what rounds the list up.

    starts: where the tokens of each sample begin, then where B even parts of the rest do, and T. No sequence
        is longer than a row: kernels leave nothing out, and their grid does not grow.
    """

    order: Tensor  # int64 [T], the token that comes at each place of the new list
    back: Tensor  # int64 [T], the place in the new list of each token
    starts: Tensor  # int32 [2 B + 1]


class Packing(NamedTuple):
    """The part of a batch that is computed, and its positions: in each row image patches, then words."""

    image: Tensor  # int64 [I], the slot b * C + c of each image that is encoded
    word: Tensor  # int64 [T - I * N], the place b * L + l in the prompts of each word that is read
    rows: Rows
    sequences: Sequences | None = None


def pack(image_mask: Tensor, token_mask: Tensor, patches: int) -> Packing:
    """Leave out absent cameras and padded words.

    Args:
        image_mask: bool [B, C] on the CPU, because the sizes of the result depend on it.
        token_mask: bool [B, L] on the CPU.
        patches: per image, N.

    Returns:
        Index tensors on the CPU. The number of images is a multiple of B / 8, that of words a multiple of
        8 B, and rows have places for the most images and, rounded up to 16, the most words of any sample.
    """
    batch = len(image_mask)
    image, image_used = _rounded_up(image_mask, max(1, batch // 8))
    word, word_used = _rounded_up(token_mask, 8 * batch)
    images, words = image_mask.sum(dim=1), token_mask.sum(dim=1)
    used = torch.cat((image_used.repeat_interleave(patches), word_used))
    unused = len(used) - int(used.sum())
    places = int(images.max()) * patches + _multiple(int(words.max()), 16)
    places = max(places, -(-unused // batch))  # only without any image is that more

    # In a row the words follow the patches directly, wherever the patches end.
    sample_of_image, sample_of_word = image // image_mask.shape[1], word // token_mask.shape[1]
    number = torch.arange(len(image)) - _starts(images)[sample_of_image]
    place_of_patch = (number[:, None] * patches + torch.arange(patches)).flatten()
    place_of_word = (
        images[sample_of_word] * patches + torch.arange(len(word)) - _starts(words)[sample_of_word]
    )
    sample = torch.cat((sample_of_image.repeat_interleave(patches), sample_of_word))
    place_in_row = torch.cat((place_of_patch, place_of_word))
    place = (sample * places + place_in_row).masked_fill(~used, 0)
    source = torch.zeros(batch * places, dtype=torch.int64)
    source[place[used]] = used.nonzero().squeeze(1)
    lengths = images * patches + words
    filled = torch.arange(places) < lengths[:, None]
    rows = Rows(source.view(batch, places), place, filled, used)
    return Packing(image, word, rows, _sequences(sample, place_in_row, used, lengths))


def pad(image_mask: Tensor, token_mask: Tensor, patches: int) -> Packing:
    """Compute everything, and mask absent cameras and padded words in attention.

    Arguments as for `pack`, on any device; without synchronisation, because the result's sizes are known.
    """
    batch, cameras = image_mask.shape
    length = token_mask.shape[1]
    device = image_mask.device
    image = torch.arange(batch * cameras, device=device)
    word = torch.arange(batch * length, device=device)
    widths = [cameras * patches, length]
    tokens = torch.arange(batch * sum(widths), device=device)
    parts = tokens.split([batch * width for width in widths])
    source = torch.cat([part.view(batch, -1) for part in parts], dim=1)
    filled = torch.cat((image_mask.repeat_interleave(patches, dim=1), token_mask), dim=1)
    places = torch.arange(source.numel(), device=device).view_as(source)
    place = torch.cat([part.flatten() for part in places.split(widths, dim=1)])
    return Packing(image, word, Rows(source, place, filled, torch.ones_like(place, dtype=torch.bool)))


def by_sample(tokens: Tensor, packing: Packing) -> tuple[Tensor, Rows]:
    """A list [T, ...] in the order of its samples, and the rows of the new list."""
    rows, sequences = packing.rows, packing.sequences
    assert sequences is not None
    order, back, starts = sequences
    moved = Rows(back[rows.source], rows.place[order], rows.filled, rows.used[order], starts)
    return _Move.apply(tokens, order, back, rows.used), moved


def to_rows(tokens: Tensor, rows: Rows | None) -> Tensor:
    """[T, ...] -> [B, P, ...]; without `rows` the tokens are in rows already."""
    if rows is None:
        return tokens
    moved = _Move.apply(tokens, rows.source.flatten(), rows.place, rows.used)
    return moved.unflatten(0, rows.source.shape)


def to_list(tokens: Tensor, rows: Rows | None) -> Tensor:
    """[B, P, ...] -> [T, ...]; without `rows` the tokens stay in rows."""
    if rows is None:
        return tokens
    return _Move.apply(tokens.flatten(0, 1), rows.place, rows.source.flatten(), rows.filled.flatten())


def any_length(tensor: Tensor, dim: int) -> Tensor:
    """`tensor`, marked so that compiled code accepts any size of its dimension `dim`."""
    if not torch.compiler.is_compiling():
        torch._dynamo.maybe_mark_dynamic(tensor, dim)
    return tensor


class _Move(torch.autograd.Function):
    """`tokens[index]`, whose gradient is gathered too: atomic additions are slow and not deterministic."""

    @staticmethod
    def forward(tokens: Tensor, index: Tensor, back: Tensor, keep: Tensor) -> Tensor:
        return tokens.index_select(0, index)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, _, back, keep = inputs
        ctx.save_for_backward(back, keep)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        back, keep = ctx.saved_tensors
        gradient = gradient.index_select(0, back)
        keep = keep.view(-1, *(1,) * (gradient.ndim - 1))
        return torch.where(keep, gradient, 0.0), None, None, None


def _sequences(sample: Tensor, place_in_row: Tensor, used: Tensor, lengths: Tensor) -> Sequences:
    """Put the tokens of a list by sample.

    Args:
        sample, place_in_row: int64 [T], of each token.
        used: bool [T], False for tokens that only round the list up.
        lengths: int64 [B], tokens of each sample.
    """
    number = torch.arange(len(used))
    unused = len(used) - int(used.sum())
    back = torch.where(
        used, _starts(lengths)[sample] + place_in_row, len(used) - unused - 1 + (~used).cumsum(0)
    )
    order = torch.empty_like(back)
    order[back] = number
    batch = len(lengths)
    rest = unused // batch + (torch.arange(batch) < unused % batch)
    ends = torch.cat((lengths, rest)).cumsum(0)
    return Sequences(order, back, F.pad(ends, (1, 0)).int())


def _rounded_up(mask: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Flat indices where `mask` is True, padded with zeros to a rounded number; and which are not padding."""
    index = mask.flatten().nonzero().squeeze(1)
    size = max(multiple, _multiple(len(index), multiple))
    padded = torch.zeros(size, dtype=torch.int64)
    padded[: len(index)] = index
    return padded, torch.arange(size) < len(index)


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _starts(counts: Tensor) -> Tensor:
    return counts.cumsum(0) - counts
