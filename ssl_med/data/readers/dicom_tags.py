"""Vocabulary of the DICOM reader: which tags it asks for, which modalities there are, what tells stacks apart."""

NOT_IMAGES = {"SR", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SEG", "REG", "PR", "KO", "DOC", "ECG", "AU", "FID"}
NOT_IMAGES |= {"EPS", "HD", "PLAN", "RWV", "SMR", "RESP", "EEG", "EMG", "EOG", "TEXTUREMAP", "ANN", "M3D"}
"""Modalities of objects that are no pictures."""

FILMS = {"US", "BDUS", "IVUS", "XA", "RF", "ES", "XC"}
"""Modalities whose frames follow each other in time where nothing is said of their places."""

_PICTURES = "AR BDUS BI BMD CFM CR CT DG DMS DX ES FA FS GM IO IVOCT IVUS KER LEN LS MG MR NM OAM OCT OP OPM OPT OPTBSV"
_PICTURES += " OPTENF OPV OSS OT PA POS PT PX RF RG RTIMAGE SM SRF TG US VA XA XC"
MODALITIES = NOT_IMAGES.union(_PICTURES.split())
"""Defined terms of (0008,0060), PS3.3 C.7.3.1.1.1, and NOT_IMAGES."""

SEPARATORS: dict[str, tuple[tuple[str | int, ...], ...]] = {
    "ImageType": (
        ("MRImageFrameTypeSequence", "FrameType"),
        ("CTImageFrameTypeSequence", "FrameType"),
        ("PETFrameTypeSequence", "FrameType"),
        ("ImageType",),
    ),
    "EchoTime": (("MREchoSequence", "EffectiveEchoTime"), ("EchoTime",)),
    "b-value": (("MRDiffusionSequence", "DiffusionBValue"), ("DiffusionBValue",), (0x0019100C,)),
    "gradient direction": (
        ("MRDiffusionSequence", "DiffusionGradientDirectionSequence", "DiffusionGradientOrientation"),
        ("DiffusionGradientOrientation",),
    ),
    "InversionTime": (("MRModifierSequence", "InversionTimes"), ("InversionTime",)),
    "FlipAngle": (("MRTimingAndRelatedParametersSequence", "FlipAngle"), ("FlipAngle",)),
    "ConvolutionKernel": (("CTReconstructionSequence", "ConvolutionKernel"), ("ConvolutionKernel",)),
    "KVP": (("CTXRayDetailsSequence", "KVP"), ("KVP",)),
    "time point": (("FrameContentSequence", "TemporalPositionIndex"), ("TemporalPositionIdentifier",)),
    "StackID": (("FrameContentSequence", "StackID"), ("StackID",)),
    "AcquisitionNumber": (("FrameContentSequence", "FrameAcquisitionNumber"), ("AcquisitionNumber",)),
    "TriggerTime": (("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"), ("TriggerTime",)),
    "FrameReferenceTime": (("FrameReferenceTime",),),
    "AcquisitionTime": (("FrameContentSequence", "FrameAcquisitionDateTime"), ("AcquisitionTime",)),
}
"""What one series may hold several of, and where it stands: in the functional groups of a frame, or in the header.

(0019,100c) is the b-value in Siemens' private tags. Elsewhere it may hold anything: harmless, since a series is split
only where that makes every part whole.
"""

CLOCKS = ("time point", "TriggerTime", "FrameReferenceTime", "AcquisitionTime")
"""Separators that order what was taken at one place, even where their values differ from place to place."""

TAGS: tuple[str | int, ...] = (
    "BitsAllocated",
    "BitsStored",
    "BurnedInAnnotation",
    "Columns",
    "CorrectedImage",
    "DecayCorrection",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImagerPixelSpacing",
    "Modality",
    "ModalityLUTSequence",
    "NumberOfFrames",
    "PatientID",
    "PatientWeight",
    "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation",
    "PixelRepresentation",
    "PixelSpacing",
    "RadiopharmaceuticalInformationSequence",
    "RescaleIntercept",
    "RescaleSlope",
    "Rows",
    "SOPClassUID",
    "SOPInstanceUID",
    "SamplesPerPixel",
    "SeriesDate",
    "SeriesInstanceUID",
    "SeriesTime",
    "SharedFunctionalGroupsSequence",
    "StudyInstanceUID",
    "AcquisitionDate",
    "Units",
    *(place[0] for places in SEPARATORS.values() for place in places if len(place) == 1),
)
"""What is read of a header to make an image of it."""

FACTS = ("InstitutionName", "PatientSex", "VOILUTFunction", "WindowCenter", "WindowWidth")
"""What else is read: whom the image belongs to, how it is shown; an image is none the worse where it is not sound."""

SEXES = {"F", "M", "O"}
"""Defined terms of (0010,0040); anything else may be a slip of the pen and hold a name."""
