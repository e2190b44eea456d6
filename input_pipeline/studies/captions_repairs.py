"""What did the re-saved copy of the contest's training file lose, and how do its captions become whole again?

A spreadsheet opened the original, whose captions hold quotes that are not doubled, and wrote what it had understood: of
82 captions the first inner quote is gone and one quote too many stands at the end, four of them are cut or lost a
comma where a quote was followed by one, and in four a full stop has become a slash. Where a lost quote stood, and how
a lost ending went, cannot be told from the copy. So it is written down here, for the contest's own records only:
nothing is changed unless the result is exactly the caption of the original, by its CRC-32.
"""

import zlib
from collections.abc import Mapping

QUOTES = """
552:69:8167800a 1188:52:d61735a2 1336:53:2319aa33 1338:38:b5aa50e3 1417:31:c2de345e 1717:26:95631ad7 1814:37:15e53d5d
2054:40:86206333 2070:17:a3980a72 2931:16:f7240b25 3158:2:ab91bc11 3274:34:ba3071ea 3465:11:2149e2d7 3988:13:e4c585aa
4281:26:fb874e51 4343:26:0041a94b 4439:36:7794c7ae 5356:32:b5de04d4 6453:34:e6b8e193 7118:2:5a16c4b8 7208:53:89e13720
8001:55:755ff28c 8194:49:46c10826 8562:2:c7f9b927 8984:53:77f476e8 9798:25:68fba3de 10313:54:2529e408
10318:41:ee0280c8 10350:3:f334ceb9 10742:16:8b712241 11346:30:453447f9 11518:6:dd2a3d05 11703:36:60f5bf85
11755:18:b1eac67f 11936:51:65f0561a 12084:19:4da2752e 12534:21:ab92b1d8 13156:29:89b83240 13609:27:c549b19a
13904:39:6e9e87c5 13923:38:6cf92932 14437:71:07b523a4 14438:17:01fbff84 14752:55:b7b51d9f 14957:48:5deb53d1
16403:46:d584a064 17574:55:6cb35a70 17704:25:8e37af05 17824:27:2be28e56 17864:26:41eabacb 18173:28:fda766fc
18873:26:9591d677 18981:47:6a2ecdfd 19269:79:8d0fc8be 20520:60:39b935f5 20665:46:c4dc5087 21399:30:77bbcd2c
21676:31:a775ae61 21682:49:2819cb59 22134:48:9f353099 22404:34:67490276 23211:30:d230d766 23783:40:ad92344f
23839:57:99be33fd 24853:17:5bfbff99 25062:26:aff324e5 25147:30:c3dee22b 25500:43:a5fd745e 25570:34:27f9d4ae
25780:30:fe36382d 26296:43:d63150d2 26359:51:ad556c6c 26411:36:30644c48 26501:13:33845d7e 26849:53:b856fbc8
27709:47:28ec841f 28131:20:38347274 29747:41:1f6dc70f
"""
"""Number of a record, position of the quote to insert (the last quote goes), CRC-32 of the original caption."""

ENDINGS: Mapping[str, tuple[str, str, str]] = {
    "4787": ("room/", "room.", "6bb6cd34"),
    "9084": ("Seltzer Way", '"Seltzer Way,"', "3f1f0ae2"),
    "9508": ("oh no", '"oh no, not beef on the menu again!"', "75bbc92a"),
    "14712": ("stop/", "stop.", "85d78107"),
    "14957": ('COURT"/"', '"COURT".', "5deb53d1"),
    "18112": ("thumbs up", '"thumbs up," signal.', "fefafdab"),
    "27167": (
        "Sex St", '"Sex St," along with a sign saying there is a $350 penalty is you honk.', "f2ec9905",
    ),
    "29877": ("hoop/", "hoop.", "edebc729"),
}  # fmt: skip
"""Number of a record -> what stands there, what stood there, CRC-32 of the original caption."""


def _quotes() -> dict[str, tuple[int, str]]:
    entries = (entry.split(":") for entry in QUOTES.split())
    return {number: (int(position), digest) for number, position, digest in entries}


_QUOTES = _quotes()


def restored(identifier: str, caption: str) -> str:
    """The caption as the contest published it, or as it is where this record is not known to be damaged.

    Args:
        identifier: as in the table, "552.jpg".
        caption: as it was read, newlines as LF.
    """
    number = identifier.partition(".")[0]
    if number in ENDINGS:
        found, stood, digest = ENDINGS[number]
        whole = caption.replace(found, stood, 1)
    elif number in _QUOTES and caption.endswith('"'):
        position, digest = _QUOTES[number]
        whole = f'{caption[:position]}"{caption[position:-1]}'
    else:
        return caption
    return whole if f"{zlib.crc32(whole.encode()):08x}" == digest else caption
