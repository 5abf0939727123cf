"""The data sets that are known: facts only where a page of the set states them; licences change, so check there.

Nothing of them comes with this library, and the readers were run on trees made for tests, not on the sets themselves.
"""

from __future__ import annotations

from MAESILLib.data.datasets.description import Dataset, LabelNames


def _values(*names: str) -> LabelNames:
    return tuple(enumerate(names, start=1))


TOTALSEGMENTATOR = Dataset(
    key="totalsegmentator",
    name="TotalSegmentator CT data set, version 2",
    scans="1,228 CT",
    body="all parts of the body",
    modality="CT, resampled to 1.5 mm by its authors",
    tree=(
        "FOLDER/",
        "  meta.csv                     image_id;...;split;...",
        "  s0000/ct.nii.gz",
        "  s0000/segmentations/liver.nii.gz, spleen.nii.gz, ...",
    ),
    expects="s0000/ct.nii.gz (and meta.csv beside s0000)",
    labels="one file a structure (117 of them), 1 inside; the file's name is the structure's",
    label_values=((1, "the structure that the file is named after"),),
    patients="one a case: s0000",
    splits="train, val and test of meta.csv",
    licence="CC BY 4.0",
    licence_at="the Zenodo record",
    source="https://doi.org/10.5281/zenodo.6802613",
    get=("download the archive of version 2 from the Zenodo record and unpack it",),
    citation="Wasserthal et al., TotalSegmentator: Robust Segmentation of 104 Anatomic Structures in CT Images, "
    "Radiology: Artificial Intelligence 2023, doi:10.1148/ryai.230024",
)

LIDC = Dataset(
    key="lidc-idri",
    name="LIDC-IDRI, The Cancer Imaging Archive",
    scans="1,018 CT of 1,010 patients",
    body="chest",
    modality="CT; radiographs (CR, DX) of the same patients are left out",
    tree=(
        "LIDC-IDRI/LIDC-IDRI-0001/STUDY/SERIES/*.dcm     in each series its *.xml, if downloaded with it",
        "lidc_idri/LIDC-IDRI-0001/STUDY_UID/CT_SERIES_UID/*.dcm     as idc download writes it",
    ),
    expects="LIDC-IDRI-0001/STUDY/SERIES/*.dcm",
    labels="XML of four readers for a CT series: outlines of nodules of 3 mm and more, points for smaller ones; "
    "found by the series' UID, wherever below the folder it lies; no label maps",
    patients="the folder LIDC-IDRI-NNNN; a patient may have several series",
    splits="none",
    licence="CC BY 3.0",
    licence_at="the collection's page; also on LUNA16's page about its data",
    source="https://www.cancerimagingarchive.net/collection/lidc-idri/",
    get=(
        "idc download lidc_idri --download-dir FOLDER     (pip install idc-index; images only)",
        "or the collection's page, with the XML files",
    ),
    citation="Armato et al., The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative "
    "(IDRI), Medical Physics 38:915-931, 2011; and the data's own citation on the collection's page",
    overlaps=("luna16",),
    overlap="LUNA16 is a part of LIDC-IDRI under other patient names",
)

LUNA16 = Dataset(
    key="luna16",
    name="LUNA16, LUng Nodule Analysis 2016",
    scans="888 CT",
    body="chest",
    modality="CT, slices of at most 2.5 mm",
    tree=(
        "LUNA16/",
        "  subset0/SERIES_UID.mhd, SERIES_UID.raw  ... subset9/",
        "  seg-lungs-LUNA16/SERIES_UID.mhd, .zraw",
        "  annotations.csv, candidates_V2.csv",
    ),
    expects="subset0/SERIES_UID.mhd with its .raw",
    labels="annotations.csv: seriesuid, coordX, coordY, coordZ, diameter_mm of nodules; candidates_V2.csv: points "
    "with class 0 or 1; seg-lungs-LUNA16: masks made by algorithms, no reference (3 and 4 lungs, 5 trachea, as "
    "commonly read)",
    label_values=((3, "lung"), (4, "lung"), (5, "trachea")),
    patients="the series' UID: the set does not say which scans are of one patient",
    splits="none; subset0 to subset9 are the folds of its cross-validation",
    licence="CC BY 4.0",
    licence_at="https://luna16.grand-challenge.org/Data/",
    source="https://luna16.grand-challenge.org/",
    get=("the download page of the challenge links two Zenodo records: subset0 to subset9 and the tables",),
    citation="Setio et al., Validation, comparison, and combination of algorithms for automatic detection of "
    "pulmonary nodules in computed tomography images: the LUNA16 challenge, Medical Image Analysis 42:1-13, 2017; "
    "and LIDC-IDRI",
    overlaps=("lidc-idri",),
    overlap="LUNA16 is a part of LIDC-IDRI under other patient names",
)

FLARE = Dataset(
    key="flare",
    name="FLARE, Fast and Low-resource Abdominal oRgan sEgmentation (layout of 2022)",
    scans="50 labelled and 2,000 unlabelled CT for training (2022)",
    body="abdomen",
    modality="CT",
    tree=(
        "FLARE22/",
        "  imagesTr/FLARE22_Tr_0001_0000.nii.gz     unlabelled cases may lie there too",
        "  labelsTr/FLARE22_Tr_0001.nii.gz",
        "  imagesTs/NAME_0000.nii.gz",
    ),
    expects="imagesTr/NAME_0000.nii.gz",
    labels="labelsTr, values of 2022; 2021 had 4 organs, 2023 has tumours too",
    label_values=_values(
        "liver",
        "right kidney",
        "spleen",
        "pancreas",
        "aorta",
        "inferior vena cava",
        "right adrenal gland",
        "left adrenal gland",
        "gallbladder",
        "esophagus",
        "stomach",
        "duodenum",
        "left kidney",
    ),
    patients="one a case: FLARE22_Tr_0001",
    splits="imagesTs is test; imagesTr is left to the cache to split",
    licence="no single one: data of many sources under the challenge's rules",
    licence_at="https://flare22.grand-challenge.org/Rules/ and the sources' own pages",
    source="https://flare22.grand-challenge.org/Dataset/",
    get=("join the challenge and follow its page of data sets; sort the files into the folders above",),
    citation="Ma et al., Unleashing the strengths of unlabelled data in deep learning-assisted pan-cancer abdominal "
    "organ quantification: the FLARE22 challenge, The Lancet Digital Health 2024",
    overlaps=("msd",),
    overlap="the 50 labelled CT of FLARE22 are from MSD Task07_Pancreas; others may be from public sets too",
)

AMOS = Dataset(
    key="amos",
    name="AMOS22, Abdominal Multi-Organ Segmentation",
    scans="500 CT (and 100 MR, left out)",
    body="abdomen",
    modality="CT have ids below 500, MR ids from 500 on (the set's readme); by id alone, files are not opened",
    tree=(
        "amos22/",
        "  dataset.json",
        "  imagesTr/amos_0001.nii.gz, labelsTr/amos_0001.nii.gz",
        "  imagesVa/amos_0008.nii.gz, labelsVa/amos_0008.nii.gz",
        "  imagesTs/amos_NNNN.nii.gz",
    ),
    expects="imagesTr/amos_0001.nii.gz (or imagesVa, imagesTs)",
    labels="labelsTr, labelsVa",
    label_values=_values(
        "spleen",
        "right kidney",
        "left kidney",
        "gallbladder",
        "esophagus",
        "liver",
        "stomach",
        "aorta",
        "inferior vena cava",
        "pancreas",
        "right adrenal gland",
        "left adrenal gland",
        "duodenum",
        "bladder",
        "prostate/uterus",
    ),
    patients="one a case: amos_0001",
    splits="imagesTr is train, imagesVa is val, imagesTs is test",
    licence="unclear: CC BY 4.0 or CC BY-NC",
    licence_at="the Zenodo record is cited as CC BY 4.0, the paper's page at OpenReview states CC BY-NC: ask there",
    source="https://doi.org/10.5281/zenodo.7155725",
    get=("download amos22.zip from the Zenodo record and unpack it",),
    citation="Ji et al., AMOS: A Large-Scale Abdominal Multi-Organ Benchmark for Versatile Medical Image "
    "Segmentation, NeurIPS Datasets and Benchmarks 2022, arXiv:2206.08023",
)

MSD = Dataset(
    key="msd",
    name="Medical Segmentation Decathlon",
    scans="about 1,400 CT in six tasks",
    body="liver, lung, pancreas, liver vessels, spleen, colon",
    modality="CT: tasks 03, 06, 07, 08, 09, 10; tasks whose dataset.json gives another modality (MR) are left out",
    tree=(
        "Task03_Liver/     or a folder of several",
        "  dataset.json",
        "  imagesTr/liver_0.nii.gz, labelsTr/liver_0.nii.gz",
        "  imagesTs/liver_132.nii.gz",
    ),
    expects="TaskNN_Name with dataset.json and imagesTr (or a folder of such)",
    labels="as dataset.json says: Task03_Liver 1 liver, 2 tumour; Task06_Lung 1 tumour; Task07_Pancreas 1 pancreas, "
    "2 tumour; Task08_HepaticVessel 1 vessel, 2 tumour; Task09_Spleen 1 spleen; Task10_Colon 1 tumour",
    patients="one a case: msd_liver_0; whether tasks share patients is not stated",
    splits="imagesTs is test; imagesTr is left to the cache to split",
    licence="CC BY-SA 4.0",
    licence_at="http://medicaldecathlon.com/",
    source="http://medicaldecathlon.com/",
    get=("download TaskNN_Name.tar of the tasks from the page and unpack them",),
    citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, 2022; "
    "Simpson et al., arXiv:1902.09063",
    overlaps=("flare",),
    overlap="the 50 labelled CT of FLARE22 are from MSD Task07_Pancreas",
)

BTCV = Dataset(
    key="btcv",
    name="BTCV, Multi-Atlas Labeling Beyond the Cranial Vault, abdomen",
    scans="50 CT (30 with labels)",
    body="abdomen",
    modality="CT, portal venous phase",
    tree=(
        "Abdomen/RawData/",
        "  Training/img/img0001.nii.gz, Training/label/label0001.nii.gz",
        "  Testing/img/img0061.nii.gz",
    ),
    expects="RawData/Training/img/img0001.nii.gz",
    labels="Training/label",
    label_values=_values(
        "spleen",
        "right kidney",
        "left kidney",
        "gallbladder",
        "esophagus",
        "liver",
        "stomach",
        "aorta",
        "inferior vena cava",
        "portal vein and splenic vein",
        "pancreas",
        "right adrenal gland",
        "left adrenal gland",
    ),
    patients="one a case: btcv_0001",
    splits="Testing is test; Training is left to the cache to split",
    licence="terms of use on Synapse, to be accepted before the download",
    licence_at="https://www.synapse.org/#!Synapse:syn3193805/wiki/217753",
    source="https://www.synapse.org/#!Synapse:syn3193805/wiki/89480",
    get=("register at Synapse, join the challenge, download RawData.zip of the abdomen",),
    citation="Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault: Workshop and Challenge, 2015, "
    "Synapse syn3193805",
)

IDC = Dataset(
    key="idc",
    name="any CT collection of the Imaging Data Commons (The Cancer Imaging Archive and others)",
    scans="as the collection",
    body="any",
    modality="CT series; others (MR, PT, SEG, RTSTRUCT, ...) are left out by their folder's name",
    tree=("COLLECTION_ID/PATIENT_ID/STUDY_UID/CT_SERIES_UID/*.dcm",),
    expects="COLLECTION_ID/PATIENT_ID/STUDY_UID/CT_SERIES_UID/*.dcm",
    labels="none are read; some collections hold them as series of modality SEG or RTSTRUCT",
    patients="the folder PATIENT_ID, which is the DICOM PatientID; a patient may have several series",
    splits="none",
    licence="differs by collection; left empty in the index unless a manifest gives it",
    licence_at="the collection's page in the IDC portal, and license_short_name in the index of idc-index",
    source="https://imaging.datacommons.cancer.gov/",
    get=(
        "pip install idc-index",
        "idc download COLLECTION_ID --download-dir FOLDER     as: idc download rider_pilot --download-dir data",
        "do not change --dir-template: patients are read from the folders",
    ),
    citation="Fedorov et al., National Cancer Institute Imaging Data Commons, RadioGraphics 2023, "
    "doi:10.1148/rg.230180; and the collection's own citation",
)

DATASETS = {dataset.key: dataset for dataset in (TOTALSEGMENTATOR, LIDC, LUNA16, FLARE, AMOS, MSD, BTCV, IDC)}
