# What find_package(Slicer) gives an extension, as far as packaging a scripted
# module needs it. It follows slicerMacroBuildScriptedModule of Slicer and
# ctkMacroCompilePythonScript of CTK:
#
#  - a listed file is copied to <build>/lib/Slicer-5.12/qt-scripted-modules
#    under its listed name, so one with ".." ends outside of that folder;
#  - install copies that folder, and nothing else.

set(Slicer_VERSION_MAJOR 5)
set(Slicer_VERSION_MINOR 12)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "lib/Slicer-5.12/qt-scripted-modules")
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/SlicerExtensionGenerateConfig.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/SlicerExtensionCPack.cmake")
