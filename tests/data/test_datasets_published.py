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

from tests.kit.trees import Triple, touch, triples, write
from zsadbench.cards import card_paths
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
BMAD = {"Brain": (640, 3075), "Liver": (833, 660), "Retina_RESC": (1041, 764)}

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


def visa(tree: str) -> Iterator[Triple]:
    for category, normals in VISA.items():
        for i in range(normals):
            folder = "Data/Images/Normal" if tree == "raw" else "test/good"
            yield f"{category}/{folder}/{3 * i:04}.JPG", "", 0
        for i in range(100):
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
}


def build(name: str, root: Path) -> set[Triple]:
    """Make the tree of a dataset with its tables and return the published triples."""
    wanted = set(TREES[name]())
    if name == "headct":
        wanted |= {(f"head_ct/head_ct/{i:03}.png", "", 0) for i in range(100, 200)}
        rows = "".join(f"{i},{int(i < 100)}\n" for i in range(200))
        write(root, {"labels.csv": f"id, hemorrhage\n{rows}"})
    if name == "visa":
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
    touch(root, (path for triple in wanted for path in triple[:2] if path))
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


def test_mvtec_ad_2_takes_the_public_test_part_only(tmp_path: Path) -> None:
    names = ["can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts"]
    for name in names:
        touch(
            tmp_path / "MVTec_AD_2" / name,
            [
                "test_public/good/000_regular.png",
                "test_public/bad/000_overexposed.png",
                "test_public/ground_truth/bad/000_overexposed_mask.png",
                "test_private/000_mixed.png",
                "validation/good/000_regular.png",
            ],
        )
    found = load_dataset("mvtec_ad_2", tmp_path)
    assert found.counts() == dict.fromkeys(names, (1, 1))
    assert found.words["fruit_jelly"] == "fruit jelly"


def test_mvtec_loco_has_a_folder_of_masks_per_image(tmp_path: Path) -> None:
    kinds = ("good", "logical_anomalies", "structural_anomalies")
    names = [f"pushpins/test/{kind}/{i:03}.png" for kind in kinds for i in range(2)]
    masks = [
        f"pushpins/ground_truth/{kind}/{i:03}/{part:03}.png"
        for kind in kinds[1:]
        for i in range(2)
        for part in range(i + 1)
    ]
    more = ["pushpins/train/good/000.png", "pushpins/validation/good/000.png"]
    touch(tmp_path / "mvtec_loco_anomaly_detection", [*names, *masks, *more])
    found = load_dataset("mvtec_loco", tmp_path, categories=["pushpins"])
    wanted = {(name, "" if "good" in name else name.replace("test", "ground_truth")[:-4]) for name in names}
    assert {(image, mask) for image, mask, _ in triples(found)} == wanted
    assert {image for image, _, label in triples(found) if not label} == set(names[:2])


def test_every_shipped_description_is_covered_by_a_tree() -> None:
    others = {
        "ksdd",
        "ksdd2",
        "real_iad",
        "mvtec_ad_2",
        "mvtec_loco",
        "meta_json",
        "aaclip_jsonl",
        "demo",
        "demo-aux",
    }
    assert set(card_paths("datasets")) == set(TREES) | others
