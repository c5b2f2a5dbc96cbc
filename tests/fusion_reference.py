"""The fusions once more, in plain loops over cells, heads and keys: nothing is shared with the code.

Numbers are NumPy float64, one vector or one number at a time. Weights are read by name from a
module's ``state_dict``. Maps are (C, H, W) of one image; tokens are lists of vectors, row by row.
"""

# ruff: noqa: N803  (a tensor's name ends in its shape)

from __future__ import annotations

import math

import numpy as np


class Weights:
    """The tensors of a module by name, below a prefix."""

    def __init__(self, module, prefix=""):
        self.tensors = (
            module
            if isinstance(module, dict)
            else {
                key: value.detach().double().numpy() for key, value in module.state_dict().items()
            }
        )
        self.prefix = prefix

    def at(self, name):
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def __getitem__(self, name):
        return self.tensors[self.prefix + name]

    def get(self, name):
        return self.tensors.get(self.prefix + name)

    def linear(self, vector):
        """One output after the other: a row's products with the vector, and the bias."""
        weight, bias = self["weight"], self.get("bias")
        out = np.array([sum(row * vector) for row in weight.reshape(len(weight), -1)])
        return out if bias is None else out + bias

    def norm(self, vector):
        mean = sum(vector) / len(vector)
        variance = sum((vector - mean) ** 2) / len(vector)
        return (vector - mean) / math.sqrt(variance + 1e-5) * self["weight"] + self["bias"]

    def norm_linear(self, vector):
        return self.at("1").linear(self.at("0").norm(vector))

    def mlp(self, vector, first="0", second="2"):
        return self.at(second).linear(gelu(self.at(first).linear(vector)))


def gelu(vector):
    return np.array([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in vector])


def softmax(numbers):
    top = max(numbers)
    powers = [math.exp(x - top) for x in numbers]
    return [power / sum(powers) for power in powers]


def attend(query, keys, values, scale):
    shares = softmax([float(np.dot(query, key)) * scale for key in keys])
    return sum(share * value for share, value in zip(shares, values, strict=True))


def numpy_of(tensor):
    return tensor.detach().double().numpy()


def bilinear(map_CHW, y, x, *, outside="edge"):
    """Read a map between its cells, at cell coordinates; outside it is its edge, or zero."""
    _, height, width = map_CHW.shape
    top, left = math.floor(y), math.floor(x)
    total = np.zeros(len(map_CHW))
    for row in (top, top + 1):
        for column in (left, left + 1):
            share = (1 - abs(y - row)) * (1 - abs(x - column))
            if outside == "edge":
                inside_row, inside_column = (
                    min(max(row, 0), height - 1),
                    min(max(column, 0), width - 1),
                )
                total = total + share * map_CHW[:, inside_row, inside_column]
            elif 0 <= row < height and 0 <= column < width:
                total = total + share * map_CHW[:, row, column]
    return total


def resized(map_CHW, side, *, corners):
    """Resize a square map bilinearly, with or without aligned corners."""
    old = map_CHW.shape[-1]
    out = np.zeros((len(map_CHW), side, side))
    for row in range(side):
        for column in range(side):
            if corners:
                y, x = row * (old - 1) / (side - 1), column * (old - 1) / (side - 1)
            else:
                y, x = ((at + 0.5) * old / side - 0.5 for at in (row, column))
                y, x = max(y, 0.0), max(x, 0.0)
            out[:, row, column] = bilinear(map_CHW, y, x)
    return out


# ---- channel concat ------------------------------------------------------------------------------


def channel_concat(maps):
    side = maps[0].shape[-1]
    return [
        np.array([value for one in maps for value in one[:, row, column]])
        for row in range(side)
        for column in range(side)
    ]


def cells(map_CHW):
    return [map_CHW[:, r, c] for r in range(map_CHW.shape[1]) for c in range(map_CHW.shape[2])]


# ---- patch info mining ---------------------------------------------------------------------------


def mine(weights, low, high):
    """Each low cell asks the square of high cells behind it: section 3.2 of the reference."""
    grid, window = low.shape[-1], high.shape[-1] // low.shape[-1]
    tokens = []
    for row in range(grid):
        for column in range(grid):
            own = low[:, row, column]
            behind = [
                high[:, row * window + y, column * window + x]
                for y in range(window)
                for x in range(window)
            ]
            query = weights.at("query").norm_linear(own)
            keys = [weights.at("key").norm_linear(cell) for cell in behind]
            values = [weights.at("value").norm_linear(cell) for cell in behind]
            tokens.append(own + attend(query, keys, values, 1 / math.sqrt(len(own))))
    return tokens


def mine_high_definition(weights, lows, high, crops):
    """The whole at the size of a part, then each part with its piece of the high map."""
    part = high.shape[-1] // crops
    tokens = mine(weights, lows[0], resized(high, part, corners=False))
    for index in range(crops * crops):
        row, column = divmod(index, crops)
        piece = high[:, row * part : (row + 1) * part, column * part : (column + 1) * part]
        tokens += mine(weights, lows[1 + index], piece)
    return tokens


# ---- deformable attention ------------------------------------------------------------------------


def deformable(weights, maps, heads, points):
    """Multi-scale deformable attention; every expert is a level."""
    grid, width = maps[0].shape[-1], len(maps[0])
    levels = []
    for level, one in enumerate(maps):
        projected = np.zeros((width, *one.shape[1:]))
        for row in range(one.shape[1]):
            for column in range(one.shape[2]):
                inner = weights.at(f"into.{level}").linear(one[:, row, column])
                projected[:, row, column] = weights.at("value").linear(inner)
        levels.append(projected)
    size = width // heads
    tokens = []
    for row in range(grid):
        for column in range(grid):
            base = maps[0][:, row, column]
            query = weights.at("norm").norm(base)
            offsets = weights.at("offset").linear(query).reshape(heads, len(maps), points, 2)
            scores = weights.at("weight").linear(query).reshape(heads, len(maps), points)
            found = []
            for head in range(heads):
                shares = np.array(softmax(list(scores[head].flatten()))).reshape(len(maps), points)
                total = np.zeros(size)
                for level, projected in enumerate(levels):
                    side = projected.shape[-1]
                    channels = projected[head * size : (head + 1) * size]
                    for point in range(points):
                        dx, dy = offsets[head, level, point]
                        # in cells of the level: the centre of the query's cell, and the offset
                        y = (row + 0.5) / grid * side + dy - 0.5
                        x = (column + 0.5) / grid * side + dx - 0.5
                        total += shares[level, point] * bilinear(channels, y, x, outside="zero")
                found.append(total)
            tokens.append(base + weights.at("out").linear(np.concatenate(found)))
    return tokens


# ---- mixture of resolution -----------------------------------------------------------------------


def to_side(map_CHW, side):
    old = map_CHW.shape[-1]
    if old == side:
        return map_CHW
    if old % side:
        return resized(map_CHW, side, corners=True)
    step = old // side
    out = np.zeros((len(map_CHW), side, side))
    for row in range(side):
        for column in range(side):
            piece = map_CHW[:, row * step : (row + 1) * step, column * step : (column + 1) * step]
            out[:, row, column] = piece.sum(axis=(1, 2)) / step**2
    return out


def pointwise(weights, map_CHW):
    out = np.zeros((len(weights["weight"]), *map_CHW.shape[1:]))
    for row in range(map_CHW.shape[1]):
        for column in range(map_CHW.shape[2]):
            out[:, row, column] = weights.linear(map_CHW[:, row, column])
    return out


def depthwise(weights, map_CHW):
    """A 7 x 7 convolution of each channel for itself, zeros around the map."""
    channels, height, width = map_CHW.shape
    out = np.zeros_like(map_CHW)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                total = weights["bias"][channel]
                for y in range(7):
                    for x in range(7):
                        r, c = row + y - 3, column + x - 3
                        if 0 <= r < height and 0 <= c < width:
                            total += weights["weight"][channel, 0, y, x] * map_CHW[channel, r, c]
                out[channel, row, column] = total
    return out


def activated(map_CHW):
    return np.stack([np.stack([gelu(row) for row in channel]) for channel in map_CHW])


def adapter(weights, fast, slow):
    """LLaVA-HR's adapter on a fast map (C, G, G); section 5 of the reference."""
    slow_path, fast_path = weights.at("slow"), weights.at("fast")
    slow = pointwise(slow_path.at("2"), activated(pointwise(slow_path.at("0"), slow)))
    slow = to_side(slow, fast.shape[-1])
    fast = fast + pointwise(fast_path.at("2"), activated(depthwise(fast_path.at("0"), fast)))
    means = [sum(cells(one)) / len(cells(one)) for one in (fast, slow)]
    gate = math.tanh(weights.at("gate").mlp(np.concatenate(means))[0])
    return fast + gate * slow


def mixture_of_resolution(weights, fast, slow):
    slow = to_side(slow, fast.shape[-1])
    return [
        weights.at("from_fast").linear(one) + weights.at("from_slow").linear(other)
        for one, other in zip(cells(fast), cells(slow), strict=True)
    ]


# ---- spatial vision aggregator -------------------------------------------------------------------


class Aggregator:
    """Cambrian-1's sampling for one image; section 4.2 of the reference."""

    def __init__(self, weights, maps, grid, heads):
        self.weights, self.grid, self.heads = weights, grid, heads
        self.maps = []
        for index, one in enumerate(maps):
            into = weights.at(f"into.{index}")
            side = one.shape[-1]
            tokens = [into.at("3").norm(into.mlp(cell)) for cell in cells(one)]
            self.maps.append([tokens[row * side : (row + 1) * side] for row in range(side)])
        first = [token for row in self.maps[0] for token in row]
        self.mean = sum(first) / len(first)

    def before(self, depth):
        """Return the tokens in front of the projector."""
        tokens = [self.weights["query"][0]] * self.grid**2
        for index in range(depth):
            tokens = self.sample(self.weights.at(f"samplers.{index}"), tokens)
        return tokens

    def sample(self, sampler, queries):
        """Apply one layer to the queries of all cells, row by row."""
        return [
            self._one(sampler, query, *divmod(cell, self.grid))
            for cell, query in enumerate(queries)
        ]

    def _one(self, sampler, query, row, column):
        context = sampler.at("context").linear(self.mean)
        hidden = sampler.at("into").linear(np.concatenate([query, context]))
        keys, values = [], []
        for index, rows in enumerate(self.maps):
            ratio = len(rows) // self.grid
            for y in range(ratio):
                for x in range(ratio):
                    cell = rows[row * ratio + y][column * ratio + x]
                    if ratio > 1:
                        cell = cell + sampler[f"positions.{index}"][y * ratio + x]
                    keys.append(sampler.at(f"keys.{index}").norm_linear(cell))
                    values.append(sampler.at(f"values.{index}").norm_linear(cell))
        asked = sampler.at("query").norm_linear(hidden)
        size = len(hidden) // self.heads
        found = []
        for head in range(self.heads):
            own = slice(head * size, (head + 1) * size)
            found.append(
                attend(
                    asked[own],
                    [k[own] for k in keys],
                    [v[own] for v in values],
                    1 / math.sqrt(size),
                )
            )
        merged = hidden + sampler.at("merge").linear(np.concatenate(found))
        return query + sampler.at("out").mlp(sampler.at("norm").norm(merged))

    def rewrite(self, sampler, hidden):
        """Sample again for the hidden states of one image, newlines (row ends) left as they are."""
        rows = [hidden[i * (self.grid + 1) : (i + 1) * (self.grid + 1)] for i in range(self.grid)]
        queries = [vector for row in rows for vector in row[:-1]]
        sampled = self.sample(sampler, queries)
        out = []
        for index, row in enumerate(rows):
            out += [*sampled[index * self.grid : (index + 1) * self.grid], row[-1]]
        return out
