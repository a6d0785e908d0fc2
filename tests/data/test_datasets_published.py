"""Every dataset with a published layout, on trees of empty files that carry the published names."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.kit.trees import Triple, touch, triples, write
from zsadbench.cards import card_paths
from zsadbench.cli.datasets import app
from zsadbench.data import shipped_description
from zsadbench.data.load import load_dataset
from zsadbench.samples import Dataset

MVTEC = """
bottle good 20 broken_large 20 broken_small 22 contamination 21
cable good 58 bent_wire 13 cable_swap 12 combined 11 cut_inner_insulation 14 cut_outer_insulation 10
 missing_cable 12 missing_wire 10 poke_insulation 10
capsule good 23 crack 23 faulty_imprint 22 poke 21 scratch 23 squeeze 20
carpet good 28 color 19 cut 17 hole 17 metal_contamination 17 thread 19
grid good 21 bent 12 broken 12 glue 11 metal_contamination 11 thread 11
hazelnut good 40 crack 18 cut 17 hole 18 print 17
leather good 32 color 19 cut 19 fold 17 glue 19 poke 18
metal_nut good 22 bent 25 color 22 flip 23 scratch 23
pill good 26 color 25 combined 17 contamination 21 crack 26 faulty_imprint 19 pill_type 9 scratch 24
screw good 41 manipulated_front 24 scratch_head 24 scratch_neck 25 thread_side 23 thread_top 23
tile good 33 crack 17 glue_strip 18 gray_stroke 16 oil 18 rough 15
toothbrush good 12 defective 30
transistor good 60 bent_lead 10 cut_lead 10 damaged_case 10 misplaced 10
wood good 19 color 8 combined 11 hole 10 liquid 10 scratch 21
zipper good 32 broken_teeth 19 combined 16 fabric_border 17 fabric_interior 16 rough 17 split_teeth 18
 squeezed_teeth 16
"""
MPDD = """
bracket_black good 32 hole 12 scratches 35
bracket_brown good 26 bend_and_parts_mismatch 17 parts_mismatch 34
bracket_white good 30 defective_painting 13 scratches 17
connector good 30 parts_mismatch 14
metal_plate good 26 major_rust 14 scratches 34 total_rust 23
tubes good 32 anomalous 69
"""
VISA = {
    **dict.fromkeys(("candle", "macaroni1", "macaroni2", "pcb1", "pcb2"), 100),
    **dict.fromkeys(("cashew", "chewinggum", "fryum", "pipe_fryum"), 50),
    **{"capsules": 60, "pcb3": 101, "pcb4": 101},
}
DAGM = dict(zip(range(1, 7), [(504, 71), (491, 84), (491, 84), (507, 68), (495, 80), (508, 67)], strict=True))
DAGM |= dict.fromkeys(range(7, 11), (1000, 150))
VISA_ZS = {name: 71 + (n < 2) for n, name in enumerate(sorted(VISA.keys() - {"pcb4"}))}
BMAD = {"Brain": (640, 3075), "Liver": (833, 660), "Retina_RESC": (1041, 764)}

GOODS = "drink_bottle 356 425 drink_can 147 147 food_bottle 243 361 food_box 146 251 food_package 253 230"
MVTEC_3D = """
bagel 22 88 cable_gland 21 87 carrot 27 132 cookie 28 103 dowel 26 104 foam 20 80 peach 26 106 potato 22 92
rope 32 69 tire 25 87
"""
THREE_CAD = """
Aluminum_Camera_Cover 369 1077 Aluminum_Ipad 913 1134 Aluminum_Middle_Frame 731 748 Aluminum_New_Ipad 999 3937
Aluminum_New_Middle_Frame 670 736 Aluminum_Pc 911 2250 Copper_Stator 196 763 Iron_Stator 295 817
"""
AD_2 = """
can 72 90 fabric 66 90 fruit_jelly 20 60 rice 42 90 sheet_metal 24 90 vial 35 105 wallplugs 60 90
walnuts 60 90
"""
LOCO = """
breakfast_box 102 83 90 juice_bottle 94 142 94 pushpins 138 91 81 screw_bag 122 137 82
splicing_connectors 119 108 85
"""
LIGHTINGS = ("regular", "overexposed", "underexposed", "shift_1", "shift_2", "shift_3", "shift_4")

# SHA-256 of the sorted lines "image<tab>mask<tab>label" of the test lists that AA-CLIP publishes.
PUBLISHED = {
    "mvtec": "64ce70ac64db8006eb5d2e52222fd557213041a3e9a18f7c1f2e41e693f097bb",
    "mpdd": "5893a36f200e4a9b23491e62ab5747465139a7666e1cf174b37c9ec0b4403253",
    "btad": "679fe28bd6cee4c8bc1c692fb54f6d739f2bde9c7b599608a7e4aaeb2ab26b7c",
    "cvc_clinicdb": "f35dace94b51b71ffc57a0f859ccd1f3e6f9708fb08b462559cb5c2cb52e78be",
    "cvc_colondb": "110ca5df05a250fa5b753875c6ddf3c766392a383a9cc7dd2a2b5b7b63390bac",
    "cvc_300": "171e1d7fd3add7914843222ef7f9b5e4bb65eab9c5ddfa5720fb2bfd5b98bdbe",
}


def mvtec_like(table: str) -> Iterator[Triple]:
    for line in table.replace("\n ", " ").strip().splitlines():
        category, *cells = line.split()
        for kind, count in zip(cells[::2], map(int, cells[1::2]), strict=True):
            for i in range(count):
                image = f"{category}/test/{kind}/{i:03}.png"
                mask = f"{category}/ground_truth/{kind}/{i:03}_mask.png"
                yield (image, "", 0) if kind == "good" else (image, mask, 1)


def btad() -> Iterator[Triple]:
    for product, normal, defects, suffix, mask in (
        ("01", 21, 50, "bmp", "png"),
        ("02", 30, 200, "png", "png"),
        ("03", 400, 41, "bmp", "bmp"),
    ):
        yield from ((f"{product}/test/ok/{i:04}.{suffix}", "", 0) for i in range(normal))
        for i in range(defects):
            if (product, i) != ("01", 27):
                yield f"{product}/test/ko/{i:04}.{suffix}", f"{product}/ground_truth/ko/{i:04}.{mask}", 1


def polyps(numbers: range) -> Iterator[Triple]:
    return ((f"images/{i}.png", f"masks/{i}.png", 1) for i in numbers)


def visa(tree: str, normal: dict[str, int] = VISA, anomalous: int = 1200) -> Iterator[Triple]:
    for place, (category, normals) in enumerate(normal.items()):
        for i in range(normals):
            folder = "Data/Images/Normal" if tree == "raw" else "test/good"
            yield f"{category}/{folder}/{3 * i:04}.JPG", "", 0
        for i in range(len(range(place, anomalous, len(normal)))):
            image = f"{category}/{'Data/Images/Anomaly' if tree == 'raw' else 'test/bad'}/{i:03}.JPG"
            mask = f"{category}/{'Data/Masks/Anomaly' if tree == 'raw' else 'ground_truth/bad'}/{i:03}.png"
            yield image, mask, 1


def bmad() -> Iterator[Triple]:
    for category, (normal, anomalous) in BMAD.items():
        test = f"{category}_AD/test"
        yield from ((f"{test}/good/img/{i}_7.png", "", 0) for i in range(normal))
        yield from (
            (f"{test}/Ungood/img/{i}_9.png", f"{test}/Ungood/label/{i}_9.png", 1) for i in range(anomalous)
        )


def dagm() -> Iterator[Triple]:
    for k, (normal, anomalous) in DAGM.items():
        for i in range(normal + anomalous):
            mask = f"Class{k}/Test/Label/{i:04}_label.PNG" if i < anomalous else ""
            yield f"Class{k}/Test/{i:04}.PNG", mask, int(i < anomalous)


def magnetic_tiles() -> Iterator[Triple]:
    counts = {"Free": 952, "Blowhole": 115, "Break": 85, "Crack": 57, "Fray": 32, "Uneven": 103}
    for kind, count in counts.items():
        for i in range(count):
            stem = f"MT_{kind}/Imgs/exp1_num_{i}"
            yield (f"{stem}.jpg", "", 0) if kind == "Free" else (f"{stem}.jpg", f"{stem}.png", 1)


def labelled(normal: str, count: int, anomalous: str, other: int) -> Iterator[Triple]:
    yield from ((normal.format(i), "", 0) for i in range(count))
    yield from ((anomalous.format(i), "", 1) for i in range(other))


def textures() -> Iterator[Triple]:
    names = "Blotchy_099 Fibrous_183 Marbled_078 Matted_069 Mesh_114 Perforated_037 Stratified_154 Woven_001 "
    for n, name in enumerate((names + "Woven_068 Woven_104 Woven_125 Woven_127").split()):
        yield from ((f"{name}/test/good/{i:03}.png", "", 0) for i in range(29 + (n < 9)))
        for i in range(78 + (n < 11)):
            yield f"{name}/test/bad/{i:03}.png", f"{name}/ground_truth/bad/{i:03}_mask.png", 1


def pairs(image: str, mask: str, count: int) -> Iterator[Triple]:
    return ((image.format(i), mask.format(i), 1) for i in range(count))


def thirds() -> Iterator[Triple]:
    top = "electrical commutators"
    yield from ((f"{top}/test/good/{i:03}.png", "", 0) for i in range(181))
    yield from pairs(f"{top}/test/defect/{{:03}}.png", f"{top}/ground_truth/defect/{{:03}}_mask.png", 74)


def counted(table: str, numbers: int = 2) -> Iterator[tuple[str, ...]]:
    words = table.split()
    return zip(*(words[place :: numbers + 1] for place in range(numbers + 1)), strict=True)


def folders(table: str, image: str, mask: str, kinds: tuple[str, str] = ("good", "bad")) -> Iterator[Triple]:
    """Yield the images of a table of counts; the templates have ``c`` category, ``k`` kind and ``i``."""
    for category, *counts in counted(table):
        for label, (kind, count) in enumerate(zip(kinds, map(int, counts), strict=True)):
            for i in range(count):
                names = {"c": category, "k": kind, "i": i}
                yield image.format(**names), mask.format(**names) if label else "", label


def lights() -> Iterator[Triple]:
    """MVTec AD 2: every object under as many lightings as fit its count."""
    for category, *counts in counted(AD_2):
        for label, (kind, count) in enumerate(zip(("good", "bad"), map(int, counts), strict=True)):
            for i in range(count):
                stem = f"{kind}/{i // 7:03}_{LIGHTINGS[i % 7]}"
                mask = f"{category}/test_public/ground_truth/{stem}_mask.png" if label else ""
                yield f"{category}/test_public/{stem}.png", mask, label


def loco() -> Iterator[Triple]:
    kinds = ("good", "logical_anomalies", "structural_anomalies")
    for category, *counts in counted(LOCO, 3):
        for kind, count in zip(kinds, map(int, counts), strict=True):
            for i in range(count):
                mask = "" if kind == "good" else f"{category}/ground_truth/{kind}/{i:03}"
                yield f"{category}/test/{kind}/{i:03}.png", mask, int(kind != "good")


def cells() -> Iterator[Triple]:
    return ((f"images/cell{i:04}.png", "", int(i > 1508)) for i in range(1, 2625))


def strips() -> Iterator[Triple]:
    rolls = "2306881-210020u 2306894-210033u 2311517-195063u 2311694-1930c7u 2311694-2040n7u 2311980-185026u"
    for fabric, roll in enumerate((rolls + " 2608691-202020u").split()):
        for i in range(20):
            yield f"NODefect_images/{roll}/{i:04}_000_{fabric:02}.png", "", 0
    for i in range(105):
        stem = f"{i:04}_0{i % 9:02}_{i % 7:02}"
        mask = "" if i in (44, 97) else f"Mask_images/{stem}_mask.png"
        yield f"Defect_images/{stem}.png", mask, 1


def recut(top: str, prefix: str, classes: dict[str, int]) -> Iterator[Triple]:
    for name, count in classes.items():
        for i in range(count):
            good, bad = (f"{prefix}-{kind}-{i:06}_{i:010}" for kind in ("null", "defect"))
            yield f"{name}/test/good/{good}.bmp", "", 0
            yield f"{name}/test/anomaly/{bad}.bmp", f"{name}/ground_truth/anomaly/{bad}.png", 1


def kolektor() -> Iterator[Triple]:
    """50 commutators of eight parts, one part less in all; 52 have a crack."""
    parts = [f"kos{item:02}/Part{part}" for item in range(1, 51) for part in range(8)][:-1]
    for number, part in enumerate(parts):
        cracked = number % 8 == 5 or number in (0, 80)
        yield f"{part}.jpg", f"{part}_label.bmp" if cracked else "", int(cracked)


def kolektor_2() -> Iterator[Triple]:
    for number in range(20000, 21004):
        marked = number % 9 == 0 and number < 20991
        yield f"test/{number}.png", f"test/{number}_GT.png" if marked else "", int(marked)


PRIVATE = "can 688 fabric 671 fruit_jelly 547 rice 589 sheet_metal 303 vial 593 wallplugs 497 walnuts 504"


def private() -> Iterator[Triple]:
    """MVTec AD 2: every image without a label counts as normal."""
    for category, count in counted(PRIVATE, 1):
        for i in range(int(count)):
            folder, light = (("test_private", "regular"), ("test_private_mixed", "mixed"))[i % 2]
            place = "validation/good" if i < 40 else folder
            yield f"{category}/{place}/{i:03}_{'regular' if i < 40 else light}.png", "", 0


def judged_anew() -> Iterator[Triple]:
    names = [line.split()[0] for line in MVTEC.strip().splitlines() if line[0] != " "]
    kept = [name for name in names if name not in ("bottle", "metal_nut", "pill")]
    table = " ".join(f"{name} {31 + (n < 10)} {75 + (n < 6)}" for n, name in enumerate(kept))
    return folders(table, "{c}/test/{k}/{i:03}.png", "{c}/ground_truth/{k}/{i:03}_mask.png")


TREES: dict[str, Callable[[], Iterator[Triple]]] = {
    "mvtec": lambda: mvtec_like(MVTEC),
    "mpdd": lambda: mvtec_like(MPDD),
    "btad": btad,
    "visa": lambda: visa("raw"),
    "visa_pytorch": lambda: visa("pytorch"),
    "bmad": bmad,
    "dagm": dagm,
    "mtd": magnetic_tiles,
    "dtd_synthetic": textures,
    "sdd_mvtec": thirds,
    "cvc_clinicdb": lambda: polyps(range(1, 613)),
    "cvc_colondb": lambda: polyps(range(1, 381)),
    "cvc_300": lambda: polyps(range(149, 209)),
    "kvasir": lambda: pairs("images/cju{:022}.png", "masks/cju{:022}.png", 1000),
    "endo": lambda: pairs("images/{}.jpg", "masks/{}.jpg", 200),
    "tn3k": lambda: pairs("test-image/{:04}.jpg", "test-mask/{:04}.jpg", 614),
    "isic2016": lambda: pairs(
        "ISBI2016_ISIC_Part1_Test_Data/ISIC_{:07}.jpg",
        "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_{:07}_Segmentation.png",
        379,
    ),
    "headct": lambda: labelled("head_ct/head_ct/{:03}.png", 0, "head_ct/head_ct/{:03}.png", 100),
    "brainmri": lambda: labelled("no/{} no.jpeg", 98, "yes/Y{}.JPG", 155),
    "br35h": lambda: labelled("no/no{}.jpg", 1500, "yes/y{}.jpg", 1500),
    "covid19": lambda: labelled("NORMAL/NORMAL ({}).png", 1341, "COVID-19/COVID-19 ({}).png", 219),
    "mvtec_3d": lambda: folders(MVTEC_3D, "{c}/test/{k}/rgb/{i:03}.png", "{c}/test/{k}/gt/{i:03}.png"),
    "goods_ad": lambda: folders(
        f"{GOODS} cigarette_box 183 246", "{c}/test/{k}/001{i:03}.jpg", "{c}/ground_truth/{k}/001{i:03}.png"
    ),
    "3cad": lambda: folders(THREE_CAD, "{c}/test/{k}/{i}.png", "{c}/ground_truth/{k}/{i}.png"),
    "mvtec_ad_2": lights,
    "mvtec_loco": loco,
    "elpv": cells,
    "aitex": strips,
    "bmad_oct2017": lambda: folders(
        "Retina_OCT2017 242 726", "{c}_AD/test/{k}/img/{i}.png", "", ("good", "Ungood")
    ),
    "ksdd2_bayes_pfl": lambda: recut("KSDD2", "KSDD2-metal", {"Metal": 356}),
    "rsdd_bayes_pfl": lambda: recut("RSDD", "RSDD_II-metal", {"Metal15": 387}),
    "dagm_bayes_pfl": lambda: recut(
        "DAGM", "DAGM2007-fabric", {f"Fabric{k}": 150 if k < 6 else 300 for k in (1, 2, 3, 4, 5, 7, 8)}
    ),
    "ksdd": kolektor,
    "ksdd2": kolektor_2,
    "mvtec_ad_2_private": private,
    "mvtec_zs": judged_anew,
    "visa_zs": lambda: visa("raw", VISA_ZS, 941),
}
EXTRA = {
    "mvtec": ["license.txt", "readme.txt", "bottle/license.txt", "bottle/train/good/000.png"],
    "visa_pytorch": ["candle/train/good/0001.JPG"],
    "btad": ["01/train/ok/0000.bmp"],
    "dagm": ["Class1/Test/Label/Labels.txt", "Class1/Train/0001.PNG", "Class1/Train/Label/0001_label.PNG"],
    "mtd": [f"MT_Free/Imgs/exp1_num_{i}.png" for i in range(952)],
    "bmad": ["Brain_AD/valid/good/img/1.png", "Brain_AD/train/good/img/2.png"],
    "brainmri": ["brain_tumor_dataset/no/1 no.jpeg", "brain_tumor_dataset/yes/Y1.JPG"],
    "br35h": ["pred/pred0.jpg", "Br35H-Mask-RCNN/TEST/y1.jpg"],
    "covid19": ["Lung_Opacity/images/1.png"],
    "tn3k": ["trainval-image/0000.jpg", "trainval-mask/0000.jpg"],
    "mvtec_3d": [
        "bagel/test/bad/xyz/000.tiff",
        "bagel/train/good/rgb/000.png",
        "bagel/validation/good/rgb/000.png",
    ],
    "mvtec_ad_2": ["can/test_private/000_regular.png", "can/validation/good/000_regular.png"],
    "mvtec_loco": ["pushpins/train/good/000.png", "pushpins/validation/good/000.png"],
    "aitex": ["Defect_images/0100_025_08.png", "Mask_images/0044_019_04_mask1.png"],
    "ksdd2_bayes_pfl": ["Metal/train/good/readme.txt"],
}


def _mask(suffix: str, value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 6), value).save(stream, suffix)
    return stream.getvalue()


MASKS = {f".{kind}": (_mask(kind, 0), _mask(kind, 255)) for kind in ("bmp", "png")}


def build(name: str, root: Path) -> set[Triple]:
    """Make the tree of a dataset with its tables and return the published triples."""
    wanted = set(TREES[name]())
    if name == "headct":
        wanted |= {(f"head_ct/head_ct/{i:03}.png", "", 0) for i in range(100, 200)}
        rows = "".join(f"{i},{int(i < 100)}\n" for i in range(200))
        write(root, {"labels.csv": f"id, hemorrhage\n{rows}"})
    if name == "elpv":
        chance = [1508, 295, 106, 715]
        values = [
            value for value, count in zip((0.0, 1 / 3, 2 / 3, 1.0), chance, strict=True) for _ in range(count)
        ]
        rows = "".join(f"images/cell{i:04}.png  {v}                 mono\n" for i, v in enumerate(values, 1))
        write(root, {"labels.csv": rows})
    if name in ("visa", "visa_zs"):
        stream = io.StringIO()
        writer = csv.writer(stream)
        writer.writerow(["object", "split", "label", "image", "mask"])
        for image, mask, label in sorted(wanted):
            category = image.split("/")[0]
            writer.writerow([category, "test", "anomaly" if label else "normal", image, mask])
            writer.writerow(
                [category, "train", "normal", f"{category}/Data/Images/Normal/{label}999.JPG", ""]
            )
        write(root, {"split_csv/1cls.csv": "\ufeff" + stream.getvalue()})
    if name in ("ksdd", "ksdd2"):  # a label is what its mask shows
        for image, _, label in wanted:
            stem = image.rpartition(".")[0]
            shown = root / (f"{stem}_label.bmp" if name == "ksdd" else f"{stem}_GT.png")
            shown.parent.mkdir(parents=True, exist_ok=True)
            shown.write_bytes(MASKS[shown.suffix][label])
    more = "/000.png" if name == "mvtec_loco" else ""  # a folder of masks for an image
    touch(root, (path for image, mask, _ in wanted for path in (image, mask and mask + more) if path))
    touch(root, EXTRA.get(name, []))
    return wanted


def digest(found: set[Triple]) -> str:
    lines = sorted(f"{image}\t{mask}\t{label}" for image, mask, label in found)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def differences(dataset: Dataset) -> list[str]:
    return [note for note in dataset.notes if "the full set has" in note]


@pytest.mark.parametrize("name", TREES)
def test_published_names_give_the_published_triples_and_counts(name: str, tmp_path: Path) -> None:
    wanted = build(name, tmp_path / name)
    dataset = load_dataset(name, tmp_path)
    assert triples(dataset) == wanted
    assert len(dataset.samples) == len(wanted)
    assert differences(dataset) == []
    assert dataset.expect is not None
    assert tuple(map(sum, zip(*dataset.counts().values(), strict=True))) == dataset.expect.total
    if name in PUBLISHED:
        assert digest(triples(dataset)) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["mvtec", "mpdd", "btad", "cvc_300"])
def test_shared_list_formats_give_the_same_triples(name: str, tmp_path: Path) -> None:
    wanted = build(name, tmp_path)
    classes: dict[str, list[dict[str, object]]] = {}
    lines = []
    for n, (image, mask, label) in enumerate(sorted(wanted)):
        category = image.split("/")[0]
        record = {
            "img_path": image,
            "mask_path": mask,
            "cls_name": category,
            "specie_name": "",
            "anomaly": label,
        }
        classes.setdefault(category, []).append(record)
        lines.append({"image_path": image, "label": float(label) if n % 2 else label, "class_name": category})
        if label:
            lines[-1]["mask_path"] = mask
    text = json.dumps({"Train": {}, "Test": classes})
    write(tmp_path, {"meta.json": text, "full-shot.jsonl": "\n".join(map(json.dumps, lines))})
    assert triples(load_dataset("meta_json", tmp_path)) == wanted
    assert triples(load_dataset("aaclip_jsonl", tmp_path)) == wanted


def test_kolektor2_labels_come_from_the_masks_and_stray_copies_are_left_out(tmp_path: Path) -> None:
    touch(
        tmp_path,
        [f"test/{i}.png" for i in (20000, 20001, 20002)] + ["train/10301 (copy).png", "test/5 (copy).png"],
    )
    for i, value in ((20000, 0), (20001, 255), (20002, 1)):
        Image.new("L", (4, 6), value).save(tmp_path / f"test/{i}_GT.png")
    found = load_dataset("ksdd2", tmp_path)
    assert triples(found) == {
        ("test/20000.png", "", 0),
        ("test/20001.png", "test/20001_GT.png", 1),
        ("test/20002.png", "test/20002_GT.png", 1),
    }
    assert differences(found) == [
        "warning: in all: 1 normal and 2 anomalous images, the full set has 894 and 110"
    ]


def test_kolektor_labels_come_from_the_masks(tmp_path: Path) -> None:
    touch(tmp_path, ["kos01/Part0.jpg", "kos01/Part1.jpg"])
    for part, value in ((0, 0), (1, 255)):
        Image.new("L", (4, 6), value).save(tmp_path / f"kos01/Part{part}_label.bmp")
    assert triples(load_dataset("ksdd", tmp_path)) == {
        ("kos01/Part0.jpg", "", 0),
        ("kos01/Part1.jpg", "kos01/Part1_label.bmp", 1),
    }


def test_groups_come_from_published_names(tmp_path: Path) -> None:
    build("mvtec_ad_2", tmp_path / "mvtec_ad_2")
    lights = {s.key: s.groups for s in load_dataset("mvtec_ad_2", tmp_path).samples}
    assert lights["vial/test_public/bad/003_shift_2.png"] == {"lighting": "shift_2", "object": "bad/003"}
    assert {groups["lighting"] for groups in lights.values()} == set(LIGHTINGS)

    names = [
        "OK/S0007/usb_adaptor_0007_OK_C1_20230922.jpg",
        "NG/HS/S0064/usb_adaptor__0064_NG_HS_C5_2023.jpg",
    ]
    records = [
        {"category": "usb_adaptor", "anomaly_class": "?", "image_path": n, "mask_path": None} for n in names
    ]
    table = json.dumps({"train": [], "test": records})
    write(tmp_path, {"real_iad/realiad_jsons/realiad_jsons/usb_adaptor.json": table})
    touch(tmp_path / "real_iad/realiad_1024/usb_adaptor", names)
    views = [s.groups for s in load_dataset("real_iad", tmp_path).samples]
    assert views == [{"view": "C5", "object": "HS/S0064"}, {"view": "C1", "object": "OK/S0007"}]


def test_real_iad_reads_one_table_per_class(tmp_path: Path) -> None:
    ok, ng = "OK/S0001/a_C1.jpg", "NG/HS/S0002/b_C1.jpg"
    for category in ("usb", "toy"):
        records = [
            {"category": category, "anomaly_class": "OK", "image_path": ok, "mask_path": None},
            {
                "category": category,
                "anomaly_class": "HS",
                "image_path": ng,
                "mask_path": ng[:-4] + "_mask.png",
            },
        ]
        table = {"meta": {"prefix": "-"}, "train": records[:1], "test": records}
        write(tmp_path, {f"realiad_jsons/realiad_jsons/{category}.json": json.dumps(table)})
        touch(tmp_path / "realiad_1024" / category, [ok, ng, ng[:-4] + "_mask.png"])
    found = load_dataset("real_iad", tmp_path)
    assert found.categories == ("toy", "usb")
    assert [s.specie for s in found.samples] == ["HS", "OK", "HS", "OK"]
    assert ("realiad_1024/usb/" + ng, "realiad_1024/usb/NG/HS/S0002/b_C1_mask.png", 1) in triples(found)
    assert len(load_dataset("real_iad", tmp_path, split="train").samples) == 2


def test_a_view_without_a_mask_is_normal_even_of_a_defective_object(tmp_path: Path) -> None:
    seen, unseen = "NG/HS/S0002/plug_0002_NG_C1_20240101.jpg", "NG/HS/S0002/plug_0002_NG_C2_20240101.jpg"
    records = [
        {"category": "plug", "anomaly_class": "HS", "image_path": seen, "mask_path": seen[:-4] + "_mask.png"},
        {"category": "plug", "anomaly_class": "HS", "image_path": unseen, "mask_path": None},
    ]
    table = json.dumps({"meta": {}, "train": [], "test": records})
    places = {
        "real_iad": ("realiad_jsons/realiad_jsons", "realiad_1024"),
        "real_iad_variety": ("realiadvariety_jsons/Real-IAD_Variety_jsons", "realiadvariety_raw"),
    }
    for name, (jsons, images) in places.items():
        write(tmp_path / name, {f"{jsons}/plug.json": table})
        touch(tmp_path / name / images / "plug", [seen, seen[:-4] + "_mask.png", unseen])
        found = load_dataset(name, tmp_path)
        top = f"{images}/plug/"
        assert triples(found) == {
            (top + seen, top + seen[:-4] + "_mask.png", 1),
            (top + unseen, "", 0),
        }


def test_autovi_has_a_folder_of_masks_per_image(tmp_path: Path) -> None:
    touch(
        tmp_path / "AutoVI/pipe_clip",
        [
            *("test/good/0001.png", "test/unclipped/0089.png", "train/good/0000.png"),
            *(f"ground_truth/unclipped/0089/{part:04}.png" for part in range(2)),
        ],
    )
    assert triples(load_dataset("autovi", tmp_path, categories=["pipe_clip"])) == {
        ("pipe_clip/test/good/0001.png", "", 0),
        ("pipe_clip/test/unclipped/0089.png", "pipe_clip/ground_truth/unclipped/0089", 1),
    }


def test_kvasir_in_its_three_trees(tmp_path: Path) -> None:
    touch(tmp_path / "kvasir/Kvasir", ["images/cju0.png", "masks/cju0.png"])
    assert triples(load_dataset("kvasir", tmp_path)) == {("images/cju0.png", "masks/cju0.png", 1)}
    touch(tmp_path / "original/Kvasir-SEG", ["images/cju0.jpg", "masks/cju0.jpg", "kavsir_bboxes.json"])
    assert triples(load_dataset("kvasir", tmp_path / "original")) == {
        ("images/cju0.jpg", "masks/cju0.jpg", 1)
    }
    stem = "Kvasir_defect_cju0_000000"
    names = [f"colon/test/anomaly/{stem}.bmp", f"colon/ground_truth/anomaly/{stem}.png"]
    touch(tmp_path / "kvasir_bayes_pfl/Kvasir", names)
    assert triples(load_dataset("kvasir_bayes_pfl", tmp_path)) == {(*names, 1)}


def test_check_counts_a_set_and_says_what_the_full_one_has(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "elpv/images").mkdir(parents=True, exist_ok=True)
        Image.new("L", (300, 300), 40 * i).save(tmp_path / f"elpv/images/cell{i:04}.png")
    rows = "".join(f"images/cell{i:04}.png  {v}  mono\n" for i, v in enumerate(("0.0", "0.0", "1.0")))
    write(tmp_path, {"elpv/labels.csv": rows})
    result = CliRunner().invoke(app, ["check", "elpv", "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "2 normal and 1 anomalous images, the full set has 1508 and 1116" in result.output
    *_, group, last = result.output.splitlines()
    assert group == "group module: 1 value"
    assert last.endswith("2 normal and 1 anomalous test images, 0 errors.")
    shown = CliRunner().invoke(app, ["show", "mvtec_ad_2"])
    assert "groups    lighting, object" in shown.output


@pytest.mark.parametrize("name", ["aitex", "ksdd2_bayes_pfl", "mvtec_loco", "mvtec_ad_2", "mvtec_3d"])
def test_check_opens_a_whole_tree_and_finds_its_counts(name: str, tmp_path: Path) -> None:
    wanted = build(name, tmp_path / name)
    inside = "/000.png" if name == "mvtec_loco" else ""
    for image, mask, _ in wanted:
        (tmp_path / name / image).write_bytes(MASKS[Path(image).suffix][0])
        if mask:
            (tmp_path / name / f"{mask}{inside}").write_bytes(MASKS[".png"][1])
    result = CliRunner().invoke(app, ["check", name, "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    normal, anomalous = sum(not label for *_, label in wanted), sum(label for *_, label in wanted)
    last = result.output.splitlines()[-1]
    assert last.endswith(f"{normal} normal and {anomalous} anomalous test images, 0 errors."), last
    assert "the full set has" not in result.output


def test_every_shipped_description_is_covered_by_a_tree() -> None:
    others = {  # lists of users' own, the demo, and sets of which no counts are published
        "real_iad",
        "real_iad_variety",
        "autovi",
        "kvasir_bayes_pfl",
        "meta_json",
        "aaclip_jsonl",
        "demo",
        "demo-aux",
    }
    assert set(card_paths("datasets")) == set(TREES) | others
    counted = {name for name in card_paths("datasets") if shipped_description(name).expect is not None}
    assert counted == set(TREES) | {"demo", "demo-aux"}


def test_the_list_of_what_is_shipped_is_whole() -> None:
    page = (Path(__file__).parents[2] / "datasets/README.md").read_text()
    for name in card_paths("datasets"):
        known = shipped_description(name)
        counts = [f"{count:,}" for count in known.expect.total] if known.expect else ["", ""]
        groups = sorted({group for rule in known.rules for group in rule.groups})
        assert f"| {' | '.join([f'`{name}`', known.title, *counts, ', '.join(groups)])} |\n" in page
