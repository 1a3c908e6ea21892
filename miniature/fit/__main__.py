from miniature.fit.run import main

main()
