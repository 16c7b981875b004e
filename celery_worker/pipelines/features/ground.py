"""From pixels to the ground: where outlines lie in the picture's system and in WGS84, how large they are in m²."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyproj
import shapely
from affine import Affine
from pyproj import network

from jobs.errors import BadInput

network.set_network_enabled(False)  # type: ignore[attr-defined]

WIDE_DEGREES = 60.0  # from this on the local equal-area system would be far from its middle
SPLIT_LON = 180.0


class Ground:
    """Where a picture lies. Areas are measured in an equal-area system around its middle, whatever its own system."""

    def __init__(self, width: int, height: int, transform: Affine, crs: pyproj.CRS) -> None:
        self.transform, self.crs = transform, crs
        rim = _rim(width, height)
        try:
            self._to_degrees = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
            lon, lat = self._to_degrees.transform(*self._map(rim), errcheck=True)
        except pyproj.exceptions.ProjError as error:
            raise BadInput(
                "The picture's place cannot be told in degrees: its coordinate system does not fit."
            ) from error
        if not (np.isfinite(lon).all() and np.abs(lat).max() <= 90.000001):
            raise BadInput("The picture's place is not on the Earth: its transform does not fit its coordinate system.")
        self._refuse_pole(width, height)
        middle = self._to_degrees.transform(*self._map(np.array([[width / 2, height / 2]])))
        self._lon = float(middle[0][0])
        lon = self._near(lon)
        self.west, self.east, self.south, self.north = lon.min(), lon.max(), lat.min(), lat.max()
        kind = f"laea +lat_0={middle[1][0]:.6f}" if self._span < WIDE_DEGREES else "cea"
        equal = pyproj.CRS.from_proj4(f"+proj={kind} +lon_0={self._lon:.6f} +datum=WGS84 +units=m")
        self._to_metres = pyproj.Transformer.from_crs(crs, equal, always_xy=True)
        centre = Affine.translation(width / 2, height / 2)
        x, y = self._to_metres.transform(*self._map(np.array([centre @ at for at in _UNIT])))
        self.pixel_area = float(shapely.area(shapely.Polygon(np.stack([x, y], 1))))

    @property
    def pixel_side(self) -> float:
        """In metres, in the middle of the picture."""
        return float(np.sqrt(self.pixel_area))

    @property
    def bounds(self) -> list[float]:
        """West, south, east, north in degrees, as RFC 7946 has them: west is greater where they cross 180°."""
        return [round(float(value), 7) for value in (_wrap(self.west), self.south, _wrap(self.east), self.north)]

    @property
    def _span(self) -> float:
        return float(max(self.east - self.west, self.north - self.south))

    @property
    def digits(self) -> int:
        """Decimals of a degree that tell a pixel's corners apart."""
        return 7 if self.pixel_side > 0.2 else 8 if self.pixel_side > 0.02 else 9

    def map_(self, polygons: np.ndarray) -> np.ndarray:
        """In the picture's own system."""
        return self._through(polygons, lambda x, y: (x, y))

    def measure(self, polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Area in m² and perimeter in m, of polygons in pixels."""
        ground = self._through(polygons, self._to_metres.transform)
        return shapely.area(ground), shapely.length(ground)

    def degrees(self, polygons: np.ndarray) -> np.ndarray:
        """As RFC 7946 asks: longitude and latitude in WGS84, the outer ring counter-clockwise, cut at 180°."""

        def place(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            lon, lat = self._to_degrees.transform(x, y)
            return np.round(self._near(lon), self.digits), np.round(lat, self.digits)

        found = self._through(polygons, place)
        found = _mend(found)
        if self.west < -SPLIT_LON or self.east > SPLIT_LON:
            found = np.array([_cut(each) for each in found], object)
        turned: np.ndarray = shapely.orient_polygons(found)
        return turned

    def _through(self, polygons: np.ndarray, move: Callable[..., tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        found: np.ndarray = shapely.transform(polygons, lambda xy: np.stack(move(*self._map(xy)), 1))
        return found

    def _map(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b, c, d, e, f = self.transform[:6]
        return a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f

    def _near(self, lon: np.ndarray) -> np.ndarray:
        """The same meridians, none further than half a turn from the picture's middle."""
        return lon - 360 * np.round((np.asarray(lon) - self._lon) / 360)

    def _refuse_pole(self, width: int, height: int) -> None:
        for lat in (90.0, -90.0) if self.crs.is_projected else ():
            try:
                x, y = self._to_degrees.transform(0.0, lat, direction="INVERSE", errcheck=True)
            except pyproj.exceptions.ProjError:
                continue
            column, row = ~self.transform @ (x, y)
            if np.isfinite([column, row]).all() and 0 < column < width and 0 < row < height:
                back = self._to_degrees.transform(x, y)[1]
                if abs(back - lat) < 1e-6 and self._is_point(lat, x, y):
                    raise BadInput("The picture holds a pole, around which GeoJSON cannot draw: cut it there.")

    def _is_point(self, lat: float, x: float, y: float) -> bool:
        """Whether all meridians meet there; in a cylindrical system a pole is a line along the rim."""
        other = self._to_degrees.transform(90.0, lat, direction="INVERSE")
        return bool(np.hypot(other[0] - x, other[1] - y) < 1e-3)


_UNIT = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))


def _rim(width: int, height: int) -> np.ndarray:
    """Points along the edge of the picture, in pixels."""
    steps = np.linspace(0, 1, 33)
    zero, one = np.zeros_like(steps), np.ones_like(steps)
    sides = [(steps, zero), (steps, one), (zero, steps), (one, steps)]
    return np.concatenate([np.stack(side, 1) for side in sides]) * (width, height)


def _wrap(lon: float) -> float:
    return lon - 360 * np.round(lon / 360) if abs(lon) > SPLIT_LON else lon


def _mend(polygons: np.ndarray) -> np.ndarray:
    """Rounding may fold an outline onto itself; only polygons come out."""
    broken = np.flatnonzero(~shapely.is_valid(polygons))
    for n in broken:
        parts = shapely.get_parts(shapely.make_valid(polygons[n], method="structure"))
        flat = [part for part in parts if part.geom_type == "Polygon" and part.area > 0]
        polygons[n] = shapely.MultiPolygon(flat) if len(flat) > 1 else flat[0] if flat else polygons[n]
    return polygons


def _cut(polygon: shapely.Geometry) -> shapely.Geometry:
    """In parts on either side of 180°, each with longitudes of its own side."""
    west, _, east, _ = polygon.bounds
    if west >= -SPLIT_LON and east <= SPLIT_LON:
        return polygon
    parts: list[shapely.Geometry] = []
    for turn in (-360.0, 0.0, 360.0):
        turned = shapely.transform(polygon, lambda xy, turn=turn: xy + np.array([turn, 0]))
        inside = shapely.clip_by_rect(turned, -180, -90, 180, 90)
        parts += [part for part in shapely.get_parts(inside) if part.geom_type == "Polygon" and part.area > 0]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
