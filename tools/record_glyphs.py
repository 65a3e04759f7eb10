"""Render the sheet of glyphs that ships with the package: `python tools/record_glyphs.py`.

Writes glyphs.png: a row a class of `GLYPH_CLASSES`, a column a font of `FONTS`, 48×48 pixels each, sixteen greys. Another
FreeType renders a few glyphs in a hundred differently; then the hashes in tests/test_data.py change, and `DRAWING` in
liresnet_nb.data has to go up with them."""
import argparse
from pathlib import Path

from PIL import Image, features

from liresnet_nb.core import atomic_path, run_command
from liresnet_nb.data import FONTS, GLYPH_CLASSES, INK, render_glyphs

ROOT = Path(__file__).resolve().parents[1]


def record(args):
    sheet = render_glyphs(GLYPH_CLASSES).transpose(1, 2).reshape(len(GLYPH_CLASSES)*INK, len(FONTS)*INK)
    picture = Image.fromarray((sheet//17).numpy()).convert("P")
    picture.putpalette([17*grey for grey in range(16) for _ in "rgb"])
    with atomic_path(args.out) as p: picture.save(p, "PNG", optimize=True, bits=4)
    print(f"{args.out}: {len(GLYPH_CLASSES)} classes in {len(FONTS)} fonts, by FreeType {features.version('freetype2')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("record_glyphs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT/"liresnet_nb"/"glyphs.png", metavar="FILE", help="where the sheet goes")
    raise SystemExit(run_command(record, parser))
