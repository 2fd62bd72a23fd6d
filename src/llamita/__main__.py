from llamita.cli import main

main()
