# What `cmake --install` gives a C or C++ program: libqla.so, its headers, find_package(qla) and a
# pkg-config file. The Python build installs none of this: a wheel cannot hold symbolic links.
include(CMakePackageConfigHelpers)

# Until 1.0 a minor version may break the binary interface.
set_target_properties(qla PROPERTIES
  VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})

install(TARGETS qla EXPORT qlaTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY csrc/include/qla DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(QLA_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/qla)
install(EXPORT qlaTargets NAMESPACE qla:: DESTINATION ${QLA_CMAKE_DIR})
configure_package_config_file(cmake/qlaConfig.cmake.in ${PROJECT_BINARY_DIR}/qlaConfig.cmake
  INSTALL_DESTINATION ${QLA_CMAKE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/qlaConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/qlaConfig.cmake ${PROJECT_BINARY_DIR}/qlaConfigVersion.cmake
        DESTINATION ${QLA_CMAKE_DIR})

# Relative to the file itself, so that an installed tree may be moved.
file(RELATIVE_PATH QLA_PC_INCLUDE ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig
     ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(cmake/qla.pc.in ${PROJECT_BINARY_DIR}/qla.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/qla.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
