set(EXTENSION_NAME ${PROJECT_NAME})
option(BUILD_TESTING "Test the extension." ON)
enable_testing()

function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "Unknown keywords: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT MY_NAME OR NOT MY_SCRIPTS)
    message(FATAL_ERROR "NAME and SCRIPTS are mandatory")
  endif()

  set(destination "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")
  foreach(kind SCRIPTS RESOURCES)
    set(copied "")
    foreach(file IN LISTS MY_${kind})
      if(kind STREQUAL "SCRIPTS" AND NOT file MATCHES "[.]py$")
        string(APPEND file ".py")
      endif()
      set(source "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
      if(NOT EXISTS "${source}")
        message(SEND_ERROR "slicerMacroBuildScriptedModule(${kind}) given nonexistent file or directory '${file}'")
      endif()
      add_custom_command(
        OUTPUT "${destination}/${file}"
        DEPENDS "${source}"
        COMMAND ${CMAKE_COMMAND} -E copy "${source}" "${destination}/${file}"
        )
      list(APPEND copied "${destination}/${file}")
    endforeach()
    add_custom_target(Copy${MY_NAME}Python${kind} ALL DEPENDS ${copied})
  endforeach()
  install(DIRECTORY "${destination}/" DESTINATION "${Slicer_QTSCRIPTEDMODULES_LIB_DIR}" USE_SOURCE_PERMISSIONS)

  if(BUILD_TESTING AND MY_WITH_GENERIC_TESTS)
    # there, the test loads the module of that name
    slicer_add_python_unittest(SCRIPT "${MY_NAME}.py" TESTNAME_PREFIX nomainwindow_)
  endif()
endfunction()

function(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${MY_SCRIPT}")
    message(SEND_ERROR "slicer_add_python_unittest given nonexistent script '${MY_SCRIPT}'")
  endif()
  get_filename_component(name "${MY_SCRIPT}" NAME_WE)
  add_test(NAME "py_${MY_TESTNAME_PREFIX}${name}" COMMAND ${CMAKE_COMMAND} -E true)
endfunction()
