# What `cmake --install` gives a C or C++ program: libqla.so, its headers and find_package(qla). They
# go under a prefix, with a pkg-config file; or, in the Python build, into the package itself.
include(CMakePackageConfigHelpers)

if(QLA_BUILD_PYTHON)
  if(SKBUILD_STATE STREQUAL "editable")
    # Beside the Python files that Python then imports, not into pip's wheel.
    install(CODE "set(CMAKE_INSTALL_PREFIX \"${PROJECT_SOURCE_DIR}\")")
  endif()
  install(TARGETS _core LIBRARY DESTINATION qla_runtime)
  set(QLA_INSTALL_LIBDIR qla_runtime)
  set(QLA_INSTALL_INCLUDEDIR qla_runtime/include)
  set(QLA_CMAKE_DIR qla_runtime/cmake/qla)
else()
  set(QLA_INSTALL_LIBDIR ${CMAKE_INSTALL_LIBDIR})
  set(QLA_INSTALL_INCLUDEDIR ${CMAKE_INSTALL_INCLUDEDIR})
  set(QLA_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/qla)
  # Until 1.0 a minor version may break the binary interface. A wheel cannot hold the symbolic links
  # that this makes.
  set_target_properties(qla PROPERTIES
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
endif()

target_include_directories(qla PUBLIC $<INSTALL_INTERFACE:${QLA_INSTALL_INCLUDEDIR}>)
install(TARGETS qla EXPORT qlaTargets LIBRARY DESTINATION ${QLA_INSTALL_LIBDIR})
install(DIRECTORY csrc/include/qla DESTINATION ${QLA_INSTALL_INCLUDEDIR})
install(EXPORT qlaTargets NAMESPACE qla:: DESTINATION ${QLA_CMAKE_DIR})
configure_package_config_file(cmake/qlaConfig.cmake.in ${PROJECT_BINARY_DIR}/qlaConfig.cmake
  INSTALL_DESTINATION ${QLA_CMAKE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/qlaConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/qlaConfig.cmake ${PROJECT_BINARY_DIR}/qlaConfigVersion.cmake
        DESTINATION ${QLA_CMAKE_DIR})

if(NOT QLA_BUILD_PYTHON)
  install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
  # Relative to the file itself, so that an installed tree may be moved.
  file(RELATIVE_PATH QLA_PC_INCLUDE ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig
       ${CMAKE_INSTALL_FULL_INCLUDEDIR})
  configure_file(cmake/qla.pc.in ${PROJECT_BINARY_DIR}/qla.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/qla.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()
