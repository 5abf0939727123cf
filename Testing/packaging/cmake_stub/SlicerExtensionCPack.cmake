# Writes the variables that Slicer takes into the extension's description.
file(WRITE "${CMAKE_BINARY_DIR}/metadata.txt" "")
foreach(name NAME HOMEPAGE CATEGORY CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS README_FILE LICENSE_FILE)
  file(APPEND "${CMAKE_BINARY_DIR}/metadata.txt" "${name}=${EXTENSION_${name}}\n")
endforeach()
